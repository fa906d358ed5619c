"""Which Trainer a run has: of rows, of pairs or of prompts, of whole responses or in blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from stabledllm.build import build_adaptive
from stabledllm.config.settings import TrainSettings
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.data.rows import maskable_sizes
from stabledllm.data.token_rows import TokenRow
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.noise.methods import Method
from stabledllm.ppots.adaptive import AdaptiveDensity
from stabledllm.rewards.reward import Rewards
from stabledllm.training.block_schedule import BlockSizes
from stabledllm.training.blocks import BlockTrainer
from stabledllm.training.control_variate import default_rate
from stabledllm.training.policy import BlockGRPOTrainer, GRPOTrainer
from stabledllm.training.policy_run import of_policy
from stabledllm.training.policy_statistics import PolicyStatistics
from stabledllm.training.preference_run import of_pairs
from stabledllm.training.preferences import BlockDPOTrainer, DPOTrainer, PairStatistics
from stabledllm.training.statistics import StepStatistics
from stabledllm.training.trainer import MDMTrainer

_OF_DIFFERENCES = 2**6
"""Fractions of an octave to which second moments of differences of bounds are rounded: in float32 a difference of a
hundredth of its parts has lost as much to rounding, which differs with the split over devices."""


def adaptive_of(
    settings: TrainSettings, method: Method, start: Tabulated | None, known: Sequence[TokenRow]
) -> AdaptiveDensity:
    """The density that follows what a run's draws add to its loss.

    Args:
        start: the density until it is first refitted; uniform without it. known: rows that stand for the trained ones.
    """
    rounding = {"per_octave": _OF_DIFFERENCES} if settings.objective.kind == "dpo" else {}
    return build_adaptive(settings.adaptive, method, start, maskable_sizes(known, method), **rounding)


def kind_of_trainer(
    settings: TrainSettings,
    method: Method,
    loaded: LoadedModel,
    density: TSampler | None,
    rows: Mapping[str, Sequence[TokenRow]],
    rejected: Mapping[str, Sequence[TokenRow]] | None,
    *,
    resumed: bool,
    prompts: Mapping[str, Sequence[RolloutPrompt]] | None = None,
    rewards: Rewards | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Callable[..., MDMTrainer]:
    """What makes the Trainer from the arguments that all kinds share.

    Args:
        density: the fitted p(t). rows: of ``train`` and ``validation``. rejected: for preferences, their other answers.
        resumed: whether the run goes on from a checkpoint. prompts, rewards: for policy gradients, the prompts of these
            splits, and what responses to them are worth. say: takes the lines that tell of rounds.
    """
    bins = settings.method_options.ema_bins
    if settings.objective.kind == "dpo":
        more = of_pairs(settings, method, loaded, density, rows, rejected or {}, resumed=resumed)
        kind, kind_in_blocks, statistics = DPOTrainer, BlockDPOTrainer, PairStatistics()
    elif settings.objective.kind == "grpo":
        more = of_policy(settings, method, loaded, density, (prompts or {})["train"], rewards, say)
        kind, kind_in_blocks = GRPOTrainer, BlockGRPOTrainer
        statistics = PolicyStatistics(divergence=settings.grpo.beta > 0)
    else:
        more, kind, kind_in_blocks = {}, MDMTrainer, BlockTrainer
        statistics = StepStatistics(bins, default_rate(bins, len(rows["train"])), method.ema)
    blocks = {}
    if settings.block_size:
        blocks = {"block_size": BlockSizes.of(settings), "one_t": settings.block_t == "row"}
    return partial(kind_in_blocks if blocks else kind, statistics=statistics, **blocks, **more)
