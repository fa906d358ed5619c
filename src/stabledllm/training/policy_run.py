"""What a run of policy gradients has besides other runs: rollouts, rewards, the loss of responses, an estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from stabledllm.build import build_decoding
from stabledllm.config.settings import TrainSettings
from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.data.token_rows import TokenRow
from stabledllm.decoding import DecodingOptions, refuse_unsuited
from stabledllm.errors import UserError
from stabledllm.evaluation.rollouts import Rollouts
from stabledllm.likelihood.named import estimator_of
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.policy.loss import GRPOLoss
from stabledllm.rewards.reward import Rewards
from stabledllm.training.references import reference_of

_SEEDS = 1 << 63


def of_policy(
    settings: TrainSettings,
    method: Method,
    loaded: LoadedModel,
    density: TSampler | None,
    prompts: Sequence[RolloutPrompt],
    rewards: Rewards,
    say: Callable[[str], None],
) -> dict:
    """The arguments of :class:`~stabledllm.training.policy.GRPOTrainer` besides those of every Trainer.

    Args:
        prompts: of the training rows, in their order.

    Raises:
        UserError: prompts to which no reward applies, responses that the model cannot decode so, or a reference that
            cannot be set beside it.
    """
    grpo = settings.grpo
    for note in rewards.check(prompts):
        say(note)
    options = rollout_options(settings)
    refuse_unsuited(loaded.model, options)
    fill = grpo.filled_to(settings.data.pad_response_to, settings.block_size)
    kind = grpo.held_against(adapters=settings.lora is not None)
    return {
        "prompts": prompts,
        "rollouts": Rollouts(loaded, options, grpo.group, settings.generate_batch, fill),
        "rewards": rewards,
        "loss": loss_of(grpo),
        "estimator": estimator_of(
            grpo, method, density, settings.objective.eps, settings.block_size, packing=settings.packing
        ),
        "reference": reference_of(settings, loaded, kind, "grpo.reference") if kind else lambda _: None,
        "inner": grpo.inner,
        "scale": grpo.scale,
        "say": say,
    }


def refuse_unanswered(settings: TrainSettings, method: Method, rows: Sequence[TokenRow]) -> None:
    """Refuse to fit a density p(t) to rows that are prompts alone.

    Raises:
        UserError: such rows.
    """
    if settings.objective.kind == "grpo" and all(row.response_length <= 1 for row in rows):
        raise UserError(
            f"method '{method.name}': expected rows with answers, to which p(t) is fitted, found prompts alone; write "
            f"a method without ppots, or p_of_t=FILE with a density that was fitted elsewhere."
        )


def rollout_options(settings: TrainSettings) -> DecodingOptions:
    """How a run's responses are drawn, with its seed."""
    options = build_decoding(settings.grpo.rollout)
    return replace(options, seed=(settings.seed + options.seed) % _SEEDS)


def loss_of(grpo: GRPOSettings) -> GRPOLoss:
    """The loss of responses under these settings."""
    return GRPOLoss(grpo.ratio_in_force, grpo.clip, grpo.clip_high, grpo.mean, grpo.beta, grpo.kl)
