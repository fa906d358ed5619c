"""Collects what is logged of policy gradients: rewards and responses of rounds, ratios and divergence of steps."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.noise.densities import TSampler
from stabledllm.policy.loss import PolicyLosses
from stabledllm.training.rounds import Begun, Round, as_saved
from stabledllm.training.statistics import Gather, StepStatistics

_OF_STEPS = ("ratio/mean", "clip_ratio/low_mean", "clip_ratio/high_mean", "kl")


class PolicyStatistics(StepStatistics):
    """Means over the steps since the last line of the log; and where the round of the last step was begun.

    Args:
        divergence: whether there is a reference that the policy diverges from.
    """

    def __init__(self, divergence: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.divergence = divergence
        self.figures: dict[str, list[float]] = {}
        """The sum of each figure, and the number of steps that had it."""
        self.rollout_forward_rows = 0
        self.counts: dict[str, int] = {}
        """Of the groups of all rounds."""
        self.told_equal = False
        """Whether the user was told of a round that teaches nothing."""
        self.round: dict | None = None

    def state(self) -> dict:
        saved = super().state()
        saved["args"] |= {"divergence": self.divergence}
        own = {
            name: getattr(self, name) for name in ("figures", "rollout_forward_rows", "counts", "told_equal", "round")
        }
        return saved | {"attributes": saved["attributes"] | own}

    def totals(self) -> dict[str, int]:
        return super().totals() | {"rollout_forward_rows": self.rollout_forward_rows, **self.counts}

    def told(self) -> list[str]:
        """A sentence on the groups that taught nothing, and one on responses without a reward, where there were any."""
        groups, equal, without = (self.counts.get(name, 0) for name in self.counts) if self.counts else (0, 0, 0)
        rewards = "equal rewards or none" if without else "equal rewards"
        said = [f"{equal:,} of {groups:,} groups had {rewards}, and taught nothing"] if equal else []
        return said + ([f"{without:,} responses had no reward, and no part in their groups"] if without else [])

    @property
    def begun(self) -> Begun | None:
        """Where the round of the last step was begun."""
        return Begun(**self.round) if self.round else None

    def take_round(self, taken: Round, step: int) -> None:
        """Count a round for one of its steps; what it cost to make once, at its first.

        Args:
            step: steps before it.
        """
        self.round = as_saved(taken.begun)
        if step == taken.begun.step:
            self.rollout_forward_rows += taken.forward_rows
            self.forward_passes += taken.value_rows
            self.counts = {name: self.counts.get(name, 0) + count for name, count in taken.counts.items()}
        for name, value in taken.figures.items():
            self._add(name, value)

    def add_responses(self, found: PolicyLosses, forwards: int) -> None:
        """Add the responses of a micro-batch of this rank; ``forwards``: the forward rows of the policy."""
        columns = (found.ratio, found.clipped_low, found.clipped_high, found.kl)
        each = torch.full_like(found.ratio, forwards / len(found.ratio))
        self._rows.append(torch.stack([torch.ones_like(each), *columns, each], 1).double())

    def finish_step(self, gather: Gather, sampler: TSampler) -> TSampler:
        table: Tensor = gather(torch.cat(self._rows)).cpu()
        self._rows = []
        table = table[table[:, 0] > 0]
        self.forward_passes += round(float(table[:, -1].sum()))
        for name, value in zip(_OF_STEPS, table[:, 1:-1].mean(0).tolist(), strict=True):
            if name != "kl" or self.divergence:
                self._add(name, value)
        return sampler

    def flush(self) -> dict[str, float]:
        means = {name: total / steps for name, (total, steps) in self.figures.items()}
        self.figures = {}
        if not means:
            return {}
        return means | self.totals()

    def _add(self, name: str, value: float) -> None:
        total, steps = self.figures.get(name, (0.0, 0))
        self.figures[name] = [total + value, steps + 1]
