"""Dream-Coder's ``q_sample`` with this library's noise: t and the mask from outside, spread over the optimizer step.

The lines to change in ``fsdp_sft_trainer.py``, with ``diffusion.time_reweighting: original``::

    noise = DreamNoise("lowdisc+fixedcount", seed=42)                          # once
    noise.start(step, [len(micro) for micro in micro_batches])                 # in training_step, before its loop
    valid_token_this_rank = loss_mask.sum()                                    # before q_sample, not after it
    masked_input_ids, t, loss_mask_nonflatten = noise.q_sample(input_ids, ...) # where q_sample is called in training
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.integrations.noise import Noise
from stabledllm.integrations.step import step_positions
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import MethodOptions
from stabledllm.noise.objective import Objective

REWEIGHTINGS = ("original", "linear", "cart", "none")


class DreamNoise:
    """A ``q_sample`` with Dream-Coder's signature, whose draws span the whole step: all ranks and micro-batches.

    It returns ``t`` such that a masked token's weight in the bound is ``1 / t``, which is what ``time_reweighting:
    original`` multiplies by: mask probability times p(t), or in general the inverse of the weight. Divided by the
    tokens that may be masked, the micro-batch's loss then has the bound's token mean, whatever the method; divided by
    those that were masked, as published, it is Dream's own objective, in which a row weighs by its company.

    Args:
        method: any method of :class:`~stabledllm.integrations.Noise` with one view and one weight per row.
        p_of_t: the saved density of a method with ppots, or a ``TSampler``. options: of the method's parts.
        eps: the least mask probability; t is uniform on [eps, 1] where the method has no other density.
        time_reweighting: the trainer's setting. All but ``original`` ignore an importance weight.
        strided: how the loader deals rows to ranks (torch's ``DistributedSampler``: row by row).

    Raises:
        UserError: a method that ``q_sample`` has no place for, or that the reweighting would bias.
    """

    def __init__(
        self,
        method: str = "standard",
        *,
        p_of_t: str | Path | TSampler | None = None,
        options: MethodOptions | None = None,
        seed: int = 0,
        eps: float = 1e-3,
        time_reweighting: str = "original",
        strided: bool = True,
    ):
        # The mask token comes with every call.
        self.noise = Noise(
            method, mask_id=-1, p_of_t=p_of_t, options=options, seed=seed,
            objective=Objective(normalization="token", eps=eps),
        )  # fmt: skip
        drawn = self.noise.method
        if drawn.views.count > 1:
            raise UserError(f"DreamNoise: q_sample returns a row for a row: expected one view, found '{method}'.")
        if drawn.marks:
            raise UserError(f"DreamNoise: q_sample weighs rows, not tokens: expected no isad, found '{method}'.")
        if time_reweighting not in REWEIGHTINGS:
            raise UserError(
                f"DreamNoise: time_reweighting: expected one of {', '.join(REWEIGHTINGS)}, found '{time_reweighting}'."
            )
        if time_reweighting != "original" and not isinstance(self.noise.sampler, Uniform):
            raise UserError(
                f"DreamNoise: time_reweighting '{time_reweighting}' does not weigh by 1 / t, the importance weight: "
                f"expected 'original' for '{method}'."
            )
        self.strided, self._pending = strided, []

    def start(self, step: int, sizes: Sequence[int], *, rank: int | None = None, ranks: int | None = None) -> None:
        """Begin an optimizer step: its number and the rows of each of this rank's micro-batches.

        ``q_sample`` cannot know either, so this must be called before the step's first one.

        Args:
            rank, ranks: as in :func:`~stabledllm.integrations.step_positions`.
        """
        if self._pending:
            raise UserError(f"DreamNoise.start: expected q_sample {len(self._pending)} more times in the step before.")
        positions, step_rows = step_positions(sizes, rank=rank, ranks=ranks, strided=self.strided)
        self._pending = [(step, position, step_rows) for position in positions]

    def q_sample(
        self, input_ids, maskable_mask, mask_token_id, min=0.0, max=1.0, eos_token_id=None, t=None, t_mask=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next micro-batch's noisy ids, shape (B, L), t, shape (B,), and mask, bool, shape (B, L).

        Args:
            eos_token_id: if given, the end tokens that close a row are masked all or none, as one token.

        Raises:
            UserError: a call that ``start`` did not announce, or a min, max, t or t_mask of one's own.
        """
        if (min, max) != (0.0, 1.0) or t is not None or t_mask is not None:
            raise UserError("q_sample: expected no min, max, t or t_mask, as the method draws them, found one.")
        if not self._pending:
            raise UserError("q_sample: expected DreamNoise.start(step, sizes) before the step's micro-batches.")
        step, position, step_rows = self._pending[0]
        if len(position) != len(input_ids):
            raise UserError(f"q_sample: expected {len(position)} rows, as start was told, found {len(input_ids)}.")
        maskable = maskable_mask.bool()
        closing = _closing(input_ids, maskable, eos_token_id)
        units = maskable & ~(closing & (closing.cumsum(1) > 1))
        taken = self.noise.draw(
            input_ids, units, step, positions=position.to(input_ids.device), step_rows=step_rows, step_weight=1.0
        )
        self._pending.pop(0)
        first_masked = (taken.mask & closing).any(1, keepdim=True)
        mask = taken.mask | (closing & first_masked)
        weight = taken.token_weights().amax(1)
        drawn = torch.where(weight > 0, 1.0 / weight.clamp(min=1e-30), 1.0).float()
        return input_ids.masked_fill(mask, mask_token_id), drawn, mask


def _closing(input_ids: Tensor, maskable: Tensor, eos_token_id: int | None) -> Tensor:
    """The maskable end tokens with which a row closes, bool, shape (B, L)."""
    if eos_token_id is None:
        return torch.zeros_like(maskable)
    other = (input_ids != eos_token_id) | ~maskable
    return other.flip(1).cummax(1).values.flip(1).logical_not()
