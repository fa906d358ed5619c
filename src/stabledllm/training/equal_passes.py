"""Steps of several forward and backward passes where the weights are sharded: every rank makes the same number of them.

Each pass gathers weights from all ranks. How many a rank needs for its rows depends on their lengths, and one that made
fewer would leave the others waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Trainer

from stabledllm.likelihood.interface import Draws
from stabledllm.training.devices import is_sharded


@dataclass(frozen=True)
class EqualPasses:
    """The draws of this rank's rows, with as many passes as the rank that needs the most.

    A pass that is added repeats the first one and counts 0 times: it takes the time that this rank would wait anyway,
    and changes no value and no gradient.
    """

    draws: Draws
    passes: int
    """Forward passes of each model that is asked, the same on every rank."""

    @property
    def tokens(self) -> Tensor:
        return self.draws.tokens

    @property
    def forward_rows(self) -> int:
        """Those of this rank's rows alone."""
        return self.draws.forward_rows

    @property
    def scored(self) -> Tensor | None:
        return self.draws.scored

    def values(self, model) -> Tensor:
        values = self.draws.values(model)
        with torch.no_grad():
            for _ in self._added(model, values):
                pass
        return values

    def parts(self, model, slopes: Tensor) -> Iterator[Tensor]:
        yield from self.draws.parts(model, slopes)
        yield from self._added(model, slopes)

    def _added(self, model, like: Tensor) -> Iterator[Tensor]:
        for _ in range(self.passes - self.draws.passes):
            yield next(iter(self.draws.parts(model, torch.zeros_like(like))))


def equal_passes(trainer: Trainer, draws: Draws) -> Draws:
    """The draws of a micro-batch, made equal over the ranks where the Trainer's weights are sharded; all must call it.

    Elsewhere they are returned as they are.
    """
    if not is_sharded(trainer):
        return draws
    of_all = trainer.accelerator.gather(torch.tensor([draws.passes], device=trainer.accelerator.device))
    return EqualPasses(draws, int(of_all.max()))


def before_the_last_backward(trainer: Trainer, model) -> AbstractContextManager:
    """The context of a micro-batch's backward passes but the last: ranks exchange gradients only in that one.

    Where gradients are sharded they are exchanged in each: held back, every rank would keep those of all weights.
    """
    return nullcontext() if trainer.is_fsdp_enabled else trainer.accelerator.no_sync(model)
