"""A run whose numbers are no longer finite ends at that step, and says so: in a sentence, its record, its exit code.

The loss and the gradient are judged before the optimizer's step, so that the weights stay those of the last good step;
weights and optimizer state after it. Ranks come to one answer, so that none waits for another that has left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import Trainer

from stabledllm.errors import Diverged
from stabledllm.runtime.files import write_json
from stabledllm.runtime.launched import is_main_process
from stabledllm.training.checkpoints import stamp
from stabledllm.training.devices import save_whole

DIVERGED = "diverged"
"""The ``status`` of a record; that of any other is ``finished``, or missing in older ones."""


class StepWatch:
    """What of the step that is being made was not finite."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._losses: list[Tensor] = []
        self._norm: float | None = None

    def loss(self, rows: Tensor, mean: Tensor) -> None:
        """Row losses of a micro-batch, and its part of the step's loss as it goes backward."""
        self._losses.append(rows.detach().isfinite().all() & mean.detach().isfinite())

    def gradient(self, norm: Tensor | float | None) -> None:
        """The step's gradient norm, before it is clipped."""
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self._norm = None if norm is None else float(norm)

    def before_step(self) -> None:
        """Raise unless the loss and the gradient of the step to come are finite.

        Raises:
            Diverged: on every rank.
        """
        loss = bool(torch.stack(self._losses).all()) if self._losses else True
        gradient = self._gradient_is_finite()
        self._losses, self._norm = [], None
        step = self.trainer.state.global_step + 1
        self.require(step, {"the loss was not finite": loss, "the gradient norm was not finite": gradient})

    def _gradient_is_finite(self) -> bool:
        if getattr(self.trainer.accelerator, "scaler", None) is not None:
            return True  # float16: where it overflows, the loss scale skips the step and falls
        if self._norm is not None:
            return math.isfinite(self._norm)
        return all_finite(p.grad for p in self.trainer.model.parameters() if p.grad is not None)

    def after_step(self) -> None:
        """Raise unless the step left finite weights and a finite optimizer state.

        Raises:
            Diverged: on every rank.
        """
        state = getattr(self.trainer.optimizer, "state", None) or {}
        values = (v for entry in state.values() if isinstance(entry, dict) for v in entry.values())
        self.require(
            self.trainer.state.global_step,
            {
                "the weights were not finite after the step": self.weights_are_finite(),
                "the optimizer's state was not finite after the step": all_finite(
                    v for v in values if isinstance(v, Tensor)
                ),
            },
        )

    def weights_are_finite(self) -> bool:
        """Of the weights that are trained, as far as this rank holds them."""
        return all_finite(p for p in self.trainer.model.parameters() if p.requires_grad)

    def require(self, step: int, finite: dict[str, bool]) -> None:
        """Raise what any rank found first.

        Raises:
            Diverged: on every rank.
        """
        bad = torch.tensor([[float(not good) for good in finite.values()]], device=self.trainer.args.device)
        found = self.trainer.accelerator.gather(bad).sum(0).tolist()
        for what, count in zip(finite, found, strict=True):
            if count:
                raise Diverged(what, step)


def end_diverged(
    out: Path, run: str, record: dict, error: Diverged, *, checkpoint: Path | None, model: bool
) -> Diverged:
    """Write a diverged run's record, that of a finished one without metrics, and return what is to be raised.

    Args:
        run: name of the record, as of a finished run: a diverged run is over.
        checkpoint: the last one, whose numbers are finite. model: whether finite weights were saved.
    """
    kept = {"checkpoint": checkpoint.name if checkpoint else None, "model": "model" if model else None}
    told = {"step": error.step, "what": error.what, **kept}
    record = record | {"status": DIVERGED, "metrics": {}, "diverged": told}
    if is_main_process():
        write_json(out / run, record)
    return Diverged(error.what, error.step, sentence(out, told))


def sentence(out: Path, told: dict) -> str:
    """How the run in a folder ended, what is left of it, and what may help."""
    left = f"its last finite checkpoint is {told['checkpoint']}" if told["checkpoint"] else "it had no checkpoint yet"
    if told["model"]:
        left += f", and {told['model']}/ holds the last finite weights"
    on = " To go on from there with a lower rate, give it and allow_changed=[trainer.learning_rate]."
    return (
        f"{out}: diverged at step {told['step']}: {told['what']}; {left}.{on if told['checkpoint'] else ''} To start "
        f"anew, take another 'out', and a lower trainer.learning_rate, a longer warm-up or a smaller "
        f"trainer.max_grad_norm."
    )


def save_if_finite(trainer, folder: Path, identity: dict) -> bool:
    """Save the model where every rank's weights are finite; whether it was.

    Args:
        trainer: whose ``watch`` is a :class:`StepWatch`.
    """
    try:
        trainer.watch.require(trainer.state.global_step, {"weights": trainer.watch.weights_are_finite()})
    except Diverged:
        return False
    save_whole(trainer, folder)
    if is_main_process():
        stamp(folder, identity | {"status": DIVERGED}, trainer.density_file)
    return True


def refuse_to_repeat(out: Path, record: dict) -> None:
    """Pass silently, unless the run in a folder diverged: it would do so again.

    Raises:
        Diverged: as it ended.
    """
    if told := diverged(record):
        raise Diverged(told["what"], told["step"], sentence(out, told))


def diverged(record: dict) -> dict | None:
    """Where and why the run of a record diverged; None for one that did not."""
    return record["diverged"] if record.get("status") == DIVERGED else None


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every floating-point value of many tensors is finite; one pass over them, no copy.

    Of a tensor that is split over ranks the whole is meant where the tensor knows it, else this rank's part.
    """
    floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floats:
        return True
    largest = get_total_norm(floats, norm_type=math.inf)
    largest = largest.full_tensor() if hasattr(largest, "full_tensor") else largest
    return bool(torch.isfinite(largest))
