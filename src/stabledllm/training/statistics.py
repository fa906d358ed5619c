"""Collects what is logged beside the loss: sample size, masked share, forward passes, and EMA's adjusted loss.

Logged at every logging step, over the steps since the last one: ``ess`` (relative effective sample size of the
importance weights, in (0, 1]), ``masked_share`` (share of the maskable tokens that is masked, over used views),
``forward_passes`` (forwards since the run began) and, with EMA, ``loss_ema`` and ``loss_ema_coefficient``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.trainer_callback import ExportableState, TrainerCallback

from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Rows
from stabledllm.ppots.adaptive import AdaptiveDensity
from stabledllm.training.control_variate import EMAControlVariate

Gather = Callable[[Tensor], Tensor]


class StepStatistics(TrainerCallback, ExportableState):
    """Collects a step's rows from its micro-batches and ranks; its state is in every checkpoint."""

    def __init__(self, bins: int = 10, rate: float = 0.05, ema: bool = False):
        self.bins, self.rate, self.ema = bins, rate, ema
        self.forward_passes = 0
        self.window = [0.0] * 5
        self.not_logged: dict | None = None
        """From the last checkpoint: ``loss``, the sum of the steps' losses ``since`` the step that was logged last."""
        self.ema_state: dict = {}
        self.adaptive: AdaptiveDensity | None = None
        """The density that follows the losses collected here, set by :meth:`follow`."""
        self.adaptive_state: dict | None = None
        self._rows: list[Tensor] = []

    def state(self) -> dict:
        """The state from which the Trainer recreates this object at a checkpoint."""
        return {
            "args": {"bins": self.bins, "rate": self.rate, "ema": self.ema},
            "attributes": {
                "forward_passes": self.forward_passes,
                "window": self.window,
                "not_logged": self.not_logged,
                "ema_state": self.ema_state,
                "adaptive_state": self.adaptive.state() if self.adaptive else None,
            },
        }

    def totals(self) -> dict[str, int]:
        """What the run's record counts from its first step on."""
        return {"forward_passes": self.forward_passes}

    def follow(self, adaptive: AdaptiveDensity) -> TSampler:
        """Let a density follow the losses, from the checkpoint's state where there is one, and return its sampler."""
        if self.adaptive_state:
            adaptive.load(self.adaptive_state)
        self.adaptive = adaptive
        return adaptive.sampler()

    def add(
        self, draw: Draw, rows: Rows, counted: Tensor, losses: Tensor, forwards: int, row_weight: Tensor | None = None
    ) -> None:
        """Add one micro-batch of this rank: its rows, or in blocks its units with what they add to their rows' losses.

        Args:
            row_weight: weight of each row (or unit's row) in the step's mean; without it all are equal.
        """
        masked = (draw.mask & draw.active[..., None]).sum(dim=(1, 2)).double()
        views = draw.active.sum(1)
        row_weight = torch.ones_like(draw.t) if row_weight is None else row_weight
        places = views * rows.maskable.sum(1)
        columns = (rows.position, counted, draw.t, draw.weight, losses.detach(), masked, places, row_weight)
        table = torch.stack([c.double() for c in columns], dim=1)
        self._rows.append(torch.cat((table, torch.full_like(table[:, :1], forwards / len(table))), dim=1))

    def finish_step(self, gather: Gather, sampler: TSampler) -> TSampler:
        """Merge the ranks' rows of the step that just ended; every rank ends with the same state.

        Returns:
            the sampler of the next step; it changes when an adaptive density is refitted.
        """
        table = gather(torch.cat(self._rows)).cpu()
        self._rows = []
        self.forward_passes += round(float(table[:, -1].sum()))
        table = table[table[:, 1] > 0]
        _, _, t, weight, loss, masked, maskable, row_weight, _ = table[table[:, 0].argsort()].unbind(1)
        sums = (torch.ones_like(t), weight, weight**2, masked, maskable)
        self.window = [w + float(x.sum()) for w, x in zip(self.window, sums, strict=True)]
        if self.ema:  # EMA adjusts the terms of the step's mean, since that is what is reported
            self._finish_ema(loss * (row_weight / row_weight.mean()), t, sampler)
        # p follows the second moment of what a row adds to the step; a factor that all steps share does not matter.
        if self.adaptive and self.adaptive.update(t, weight, loss * row_weight):
            return self.adaptive.sampler()
        return sampler

    def _finish_ema(self, loss: Tensor, t: Tensor, sampler: TSampler) -> None:
        state = self.ema_state
        baseline = EMAControlVariate(self.bins, self.rate, **state.get("baseline", {}))
        adjusted = baseline.adjust(loss, t, sampler)
        coefficient = baseline.coefficient
        baseline.update(loss, t)
        self.ema_state = {
            "baseline": {"mean": baseline.mean, "seen": baseline.seen, "moments": baseline.moments},
            "coefficient": coefficient,
            "sum": state.get("sum", 0.0) + float(adjusted.mean()),
            "steps": state.get("steps", 0) + 1,
        }

    def flush(self) -> dict[str, float]:
        """The figures for the log, over the steps since the last flush."""
        n, weight, square, masked, maskable = self.window
        if not n:
            return {}
        figures = {
            "ess": weight**2 / (n * square),
            "masked_share": masked / maskable,
            "forward_passes": self.forward_passes,
        }
        self.window = [0.0] * 5
        if self.ema and self.ema_state.get("steps"):
            figures["loss_ema"] = self.ema_state["sum"] / self.ema_state["steps"]
            figures["loss_ema_coefficient"] = self.ema_state["coefficient"]
            self.ema_state |= {"sum": 0.0, "steps": 0}
        return figures
