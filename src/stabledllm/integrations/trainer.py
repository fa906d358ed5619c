"""What plug points into a transformers Trainer share: they learn the step's rows where the Trainer gathers them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.integrations.noise import Noise, NoisyRows
from stabledllm.integrations.step import step_positions

POSITION, STEP_ROWS = "step_position", "step_rows"
"""The two entries that a batch of the training loop carries to ``compute_loss``."""


@dataclass(frozen=True)
class StepPlace:
    """Where a micro-batch's rows stand in the step."""

    position: Tensor
    """Shape (B,)."""
    step_rows: int


class StepRows:
    """A mixin for a subclass of ``transformers.Trainer``: every batch of the training loop knows its rows' positions.

    The loop gathers a step's batches before the first forward (``get_batch_samples``, since transformers 4.46), so that
    nothing depends on the collator, on worker processes or on how far they run ahead. The step is the Trainer's own,
    which a resumed run continues.
    """

    noise: Noise

    def get_batch_samples(self, *args, **kwargs):
        """The step's batches, each with the positions of its rows in the step."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        positions, step_rows = step_positions([len(batch["input_ids"]) for batch in batches])
        for batch, position in zip(batches, positions, strict=True):
            batch[POSITION], batch[STEP_ROWS] = position, step_rows
        return batches, items

    def take_place(self, inputs: dict) -> StepPlace:
        """Remove the place in the step from a batch, and return it.

        Raises:
            UserError: a batch that the training loop did not hand out, of which nobody knows the place.
        """
        if POSITION not in inputs:
            raise UserError(
                f"{type(self).__name__}.compute_loss: expected a batch of the training loop, which knows its "
                "place in the step, found another; outside of that loop use Noise.draw."
            )
        return StepPlace(inputs.pop(POSITION).to(inputs["input_ids"].device), inputs.pop(STEP_ROWS))

    def draw_rows(self, input_ids: Tensor, maskable: Tensor, place: StepPlace, step_weight: float) -> NoisyRows:
        """The noise of one micro-batch in the Trainer's current step.

        Args:
            step_weight: what the sum of the weighted row losses is divided by.
        """
        return self.noise.draw(
            input_ids, maskable, self.state.global_step,
            positions=place.position, step_rows=place.step_rows, step_weight=step_weight,
        )  # fmt: skip
