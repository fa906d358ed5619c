"""Ends a run at the step at which its numbers are no longer finite, and says so in a sentence, record and exit code.

The loss and the gradient are checked before the optimizer's step, so that the weights stay those of the last good step;
weights and optimizer state are checked after it. All ranks agree, so that none waits for another that has left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import Trainer

from stabledllm.config.run_folder import DIVERGED
from stabledllm.errors import Diverged, NotFinite
from stabledllm.runtime.files import write_json
from stabledllm.runtime.launched import is_main_process
from stabledllm.training.checkpoints import stamp
from stabledllm.training.devices import save_whole

"""The ``status`` of a diverged run's record; any other has ``finished``, or none in older ones."""


class StepWatch:
    """Checks whether the numbers of the current step are finite, and keeps those of the last one."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._losses: list[Tensor] = []
        self._mean: Tensor | float = 0.0
        self._norm: float | None = None
        self.last: tuple[float, float | None] = (math.nan, None)
        """The last step's loss, as far as this rank's rows make it up, and its gradient norm before clipping."""

    def loss(self, rows: Tensor, mean: Tensor) -> None:
        """Note a micro-batch's row losses and the part of the step's loss that its backward pass starts from."""
        self._losses.append(rows.detach().isfinite().all() & mean.detach().isfinite())
        self._mean = self._mean + mean.detach()

    def gradient(self, norm: Tensor | float | None) -> None:
        """Note the step's gradient norm before clipping."""
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self._norm = None if norm is None else float(norm)

    def before_step(self) -> None:
        """Raise unless the loss and the gradient of the coming step are finite.

        Raises:
            Diverged: on every rank.
        """
        loss = bool(torch.stack(self._losses).all()) if self._losses else True
        gradient = self._gradient_is_finite()
        self.last = float(self._mean), self._norm
        self._losses, self._mean, self._norm = [], 0.0, None
        step = self.trainer.state.global_step + 1
        self.require(step, {"the loss was not finite": loss, "the gradient norm was not finite": gradient})

    def _gradient_is_finite(self) -> bool:
        if getattr(self.trainer.accelerator, "scaler", None) is not None:
            return True  # float16: after an overflow the loss scaler skips the step and lowers its scale
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
        """Whether the trained weights are finite, as far as this rank holds them."""
        return all_finite(p for p in self.trainer.model.parameters() if p.requires_grad)

    def require(self, step: int, finite: dict[str, bool]) -> None:
        """Raise the first of the conditions that is false on any rank.

        Raises:
            Diverged: on every rank.
        """
        bad = torch.tensor([[float(not good) for good in finite.values()]], device=self.trainer.args.device)
        bad_ranks = self.trainer.accelerator.gather(bad).sum(0).tolist()
        for what, count in zip(finite, bad_ranks, strict=True):
            if count:
                raise Diverged(what, step)


@contextmanager
def ending_where_not_finite(step: int) -> Iterator[None]:
    """A context in which predictions that are not finite end the run.

    Args:
        step: the optimizer step, counted from 1.

    Raises:
        Diverged: they are not.
    """
    try:
        yield
    except NotFinite as error:
        raise Diverged(f"what the model predicts was not finite ({str(error).removesuffix('.')})", step) from None


def end_diverged(
    out: Path, run: str, record: dict, error: Diverged, *, checkpoint: Path | None, model: bool
) -> Diverged:
    """Write a diverged run's record, which has no metrics, and return the exception to raise.

    Args:
        run: name of the record's file, the same as for a finished run, since a diverged run is over.
        checkpoint: the last one, whose numbers are finite. model: whether finite weights were saved.
    """
    saved = {"checkpoint": checkpoint.name if checkpoint else None, "model": "model" if model else None}
    end = {"step": error.step, "what": error.what, **saved}
    record = record | {"status": DIVERGED, "metrics": {}, "diverged": end}
    if is_main_process():
        write_json(out / run, record)
    return Diverged(error.what, error.step, sentence(out, end))


def sentence(out: Path, end: dict) -> str:
    """The sentence on how the run in a folder ended, what is left of it, and what may help."""
    left = f"its last finite checkpoint is {end['checkpoint']}" if end["checkpoint"] else "it had no checkpoint yet"
    if end["model"]:
        left += f", and {end['model']}/ holds the last finite weights"
    on = " To go on from there with a lower rate, give it and allow_changed=[trainer.learning_rate]."
    return (
        f"{out}: diverged at step {end['step']}: {end['what']}; {left}.{on if end['checkpoint'] else ''} To start "
        f"anew, take another 'out', and a lower trainer.learning_rate, a longer warm-up or a smaller "
        f"trainer.max_grad_norm."
    )


def save_if_finite(trainer, folder: Path, identity: dict) -> bool:
    """Save the model if every rank's weights are finite, and return whether it was saved.

    Args:
        trainer: a Trainer whose ``watch`` is a :class:`StepWatch`.
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
    """Refuse to repeat a run that diverged, since it would diverge again.

    Raises:
        Diverged: with the sentence that the run ended with.
    """
    if end := diverged(record):
        raise Diverged(end["what"], end["step"], sentence(out, end))


def diverged(record: dict) -> dict | None:
    """The part of a run's record that says where and why it diverged; None for a run that did not."""
    return record["diverged"] if record.get("status") == DIVERGED else None


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every floating-point value of many tensors is finite; one pass over them, no copy.

    Of a tensor that is split over ranks the whole is meant where the tensor knows it, else this rank's part.
    """
    floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floats:
        return True
    # The 2-norm takes a fourteenth of the other's time on a CPU. Squares may overflow; then the largest value decides.
    return any(_is_finite(get_total_norm(floats, norm_type=order)) for order in (2.0, math.inf))


def _is_finite(norm: Tensor) -> bool:
    return bool(torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
