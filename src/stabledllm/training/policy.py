"""Training by policy gradients: a Trainer that draws responses to its prompts, and learns from their rewards.

Legend: B responses of a micro-batch, R replicates, T tokens of the longest response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.data.rows import TokenRow, collate
from stabledllm.evaluation.ranks import Ranks
from stabledllm.evaluation.rollouts import Rollouts
from stabledllm.likelihood.interface import Draws, Estimator
from stabledllm.policy.loss import GRPOLoss
from stabledllm.rewards.reward import Rewards
from stabledllm.stats.estimate import Estimate
from stabledllm.training.blocks import InBlocks
from stabledllm.training.equal_passes import equal_passes
from stabledllm.training.final_reward import final_reward
from stabledllm.training.old_values import part_of
from stabledllm.training.ordering import RoundOrder
from stabledllm.training.positions import StepRows
from stabledllm.training.responses import ResponseTrainer
from stabledllm.training.round_making import RoundMaker
from stabledllm.training.rounds import Round


class PromptDataset(Dataset):
    """Prompts by their rows, indexed by ``(row, place)``."""

    def __init__(self, rows: Sequence[TokenRow]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, ticket: tuple[int, int]) -> tuple[TokenRow, int, int]:
        return self.rows[ticket[0]], ticket[0], ticket[1]


class PromptCollator:
    """Carries the numbers and places of prompts, with their rows padded for what counts tokens."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, items: list[tuple[TokenRow, int, int]]) -> dict:
        rows, numbers, places = zip(*items, strict=True)
        return collate(rows, self.pad_id) | {"number": torch.tensor(numbers), "place": torch.tensor(places)}


class GRPOTrainer(ResponseTrainer):
    """Trains a policy on the rewards of its own responses, by estimates of their log-likelihoods.

    The rows of a step are prompts, each with a group of responses; ``inner`` steps in turn (a round) share them. The
    noise of a response is a function of seed, step and its number in the round, so that policy, old policy and
    reference see the same draws, and any split over ranks and accumulation gives the same step. Responses, rewards and
    the values of the old policy are on disk: a resumed run continues with the same bits and repeats none. Each forward
    of the policy has a backward of its own; the gradient is the joint one.

    Args:
        train_rows: a row for each of ``prompts``, with an answer or without. eval_rows: with answers, for their bound.
        prompts: what is answered. rollouts: how. rewards: what responses are worth. loss: of responses.
        estimator: of their log-likelihoods. inner: steps of a round. scale: of the advantages.
        say: takes the lines that tell of rounds. The others are those of :class:`ResponseTrainer`.
    """

    kind = "grpo"

    def __init__(
        self,
        *,
        train_rows: Sequence[TokenRow],
        prompts: Sequence[RolloutPrompt],
        rollouts: Rollouts,
        rewards: Rewards,
        loss: GRPOLoss,
        estimator: Estimator,
        inner: int = 1,
        scale: str = "group",
        say: Callable[[str], None] = lambda _: None,
        **kwargs,
    ):
        self.prompts, self.rollouts, self.rewards = prompts, rollouts, rewards
        self.policy_loss, self.estimator, self.inner, self.scale, self.say = loss, estimator, inner, scale, say
        self.round: Round | None = None
        """The round of the step that comes, or that is being made."""
        super().__init__(train_rows=train_rows, **kwargs)
        self.train_dataset = PromptDataset(train_rows)
        self.data_collator = PromptCollator(self.pad_id)

    @property
    def bare(self):
        """The policy without what wraps it for several devices."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def ranks(self) -> Ranks:
        """The processes that draw and score together."""
        return Ranks(self.args.process_index, self.args.world_size, self.args.device)

    def draw(self, rows: Sequence[TokenRow], numbers: Sequence[int], step: int) -> Draws:
        """The draws of some responses in a step; no forward is made.

        Args:
            numbers: of the responses in their round.
        """
        return self.estimator.draw(self.bare, rows, numbers, seed=self.noise_seed, step=step)

    def _get_train_sampler(self, train_dataset=None) -> RoundOrder:
        rows = len(self.train_dataset)
        return RoundOrder(rows, self.full_step, self.order_seed, lambda: self.state.global_step, self.inner)

    def _fix_positions(self, batches: list[dict], device: torch.device) -> StepRows:
        """The same, and the round of the step with the draws of its responses."""
        tokens_before = self._tokens
        found = super()._fix_positions(batches, device)
        numbers = self._of_all_ranks([b["number"] for b in batches], device)
        order = numbers[found.counted][found.position[found.counted].argsort()]
        step = self.state.global_step
        if self.round is None or self.round.begun.number != step // self.inner:
            self.round = RoundMaker(self).round_of([self.prompts[n] for n in order.tolist()])
        self.statistics.take_round(self.round, step)
        for batch in batches:
            batch["responses"] = self._responses(batch["position"])
            rows = [self.round.rows[n] for n in batch["responses"]]
            batch["draws"] = equal_passes(self, self.draw(rows, batch["responses"], step))
        self._count_terms(batches, device)
        # Not those of the data's rows: what goes through the model is prompts with the responses to them.
        self._tokens = tokens_before + sum(len(row) for row in self.round.rows)
        return found

    def _responses(self, position: Tensor) -> list[int]:
        """The numbers of the responses to the prompts at some positions."""
        group = self.rollouts.group
        return [place * group + sample for place in position.tolist() for sample in range(group)]

    def _count_terms(self, batches: list[dict], device: torch.device) -> None:
        """Set what the step's mean is over: all its responses, or all tokens that have a ratio."""
        terms = len(self.round.rows)
        if self.policy_loss.mean == "token":
            own = sum(batch["draws"].scored.sum() for batch in batches)
            terms = int(self.accelerator.gather(own.to(device).reshape(1)).sum())
        for batch in batches:
            batch["terms"] = max(1, terms)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's mean loss; all its backward passes but the last are made here."""
        draws, numbers, step = inputs["draws"], inputs["responses"], self.state.global_step
        values = draws.values(model)
        old, reference = (
            part_of(kept[step], numbers, values) if step in kept else None
            for kept in (self.round.old, self.round.reference)
        )
        advantages = self.round.advantages[numbers].to(values)
        found, slopes = self.policy_loss.with_slopes(
            values, values if old is None else old, reference, advantages, draws.tokens, draws.scored
        )
        # Data-parallel wrappers average gradients over ranks; parts of one mean must be summed.
        share = self.args.world_size / inputs["terms"]
        last = self.back_through(model, draws, slopes * share)
        self.watch.loss(found.value, last)
        self.statistics.add_responses(found, 2 * draws.forward_rows)
        # The value of the loss, with the gradient of the last part alone.
        loss = found.value.sum() * share + (last - last.detach())
        return (loss, {}) if return_outputs else loss

    def said_at_the_end(self) -> list[str]:
        return self.statistics.told()

    def further_metrics(self) -> dict[str, Estimate]:
        found = final_reward(self.state.log_history, self.state.global_step, self.inner)
        return {"reward": found} if found else {}


class BlockGRPOTrainer(InBlocks, GRPOTrainer):
    """The same for a model in blocks, whose bounds are those of decoding block by block."""
