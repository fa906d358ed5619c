"""Any of this library's methods in your own training loop: it returns noisy rows, and a scalar loss from the outputs.

Legend: B rows, N rows of the forward (views flattened in), L positions, V vocabulary, M masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.forward.chosen import chosen
from stabledllm.loss import nll_weights, reduce_loss, row_losses
from stabledllm.method_checks import check_own_loop
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method, MethodOptions, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key


@dataclass(frozen=True)
class NoisyRows:
    """The noisy rows that go into the model, with all that turns its outputs into a loss."""

    input_ids: Tensor
    """Token ids with mask tokens, shape (N, L)."""
    mask: Tensor
    """Which positions are masked, bool, shape (N, L)."""
    source: Tensor
    """Index of the row that each forward row came from, shape (N,): ``attention_mask[source]``."""
    targets: Tensor
    """The clean ids, shape (N, L)."""
    draw: Draw
    """t, importance weights and coefficients, by row and view."""
    row_weight: Tensor
    step_weight: Tensor | float

    def loss(self, logits: Tensor) -> Tensor:
        """The scalar to call ``backward`` on.

        Args:
            logits: shape (N, L, V), or (M, V) at the masked positions only, row-major. The caller must shift logits
                that predict the *next* token.
        """
        chosen = logits[self.mask] if logits.dim() == 3 else logits
        wide = chosen if chosen.dtype == torch.float64 else chosen.float()
        return self.loss_of(F.cross_entropy(wide, self.targets[self.mask], reduction="none"))

    def loss_of(self, nll: Tensor) -> Tensor:
        """The same as :meth:`loss`, from cross-entropies at the masked positions, in nats, row-major, shape (M,)."""
        losses = row_losses(nll, self.draw.mask, self.draw.coefficient, self.draw.active)
        return reduce_loss(losses, self.row_weight, self.step_weight)

    def token_weights(self) -> Tensor:
        """The factor of each token's cross-entropy in :meth:`loss`, 0 where it is not masked; float64, shape (N, L).

        For a trainer that takes weights, or probabilities to divide by, instead of a loss.
        """
        factors = nll_weights(self.draw.mask, self.draw.coefficient, self.draw.active, self.row_weight)
        weights = torch.zeros(self.mask.shape, dtype=torch.float64, device=self.mask.device)
        return weights.masked_scatter(self.mask, factors.double() / self.step_weight)


class Noise:
    """The noise of a training loop: it draws t and masks, and gives the same loss as this library's own Trainer.

    Everything drawn is a function of (seed, step, position of the row in the step): however a step's rows are split
    over micro-batches and ranks, the noise is the same, and a resumed run repeats no draws.

    Args:
        method: any method without ``adaptive``, ``ema`` or ``syrm``, which need the Trainer or the tokenizer.
        mask_id: the mask token.
        p_of_t: the saved density of a method with ppots, or a ``TSampler``.
        objective: what is minimised.
        options: settings of the method's parts.
        seed: of everything drawn.

    Raises:
        UserError: a method that cannot be used here, or a density that is missing, is another method's or is not used
            by the method.
    """

    def __init__(
        self,
        method: str = "standard",
        *,
        mask_id: int,
        p_of_t: str | Path | TSampler | None = None,
        objective: Objective | None = None,
        options: MethodOptions | None = None,
        seed: int = 0,
    ):
        self.method = Method.parse(method, options, objective)
        check_own_loop(self.method, p_of_t=p_of_t is not None, tokens=self.method.objective.tokens)
        self.mask_id, self.objective, self.seed = mask_id, self.method.objective, seed
        self.sampler = self.method.sampler(self._fitted(p_of_t))

    def draw(
        self,
        input_ids: Tensor,
        maskable: Tensor,
        step: int,
        *,
        positions: Tensor | None = None,
        step_rows: int | None = None,
        step_weight: float | None = None,
        delimiter: Tensor | None = None,
    ) -> NoisyRows:
        """The noise of one micro-batch.

        Args:
            input_ids: clean ids, right-padded, shape (B, L).
            maskable: bool, shape (B, L): the response with its end token; never the prompt, never padding.
            step: optimizer step.
            positions: position of each row in the whole step, over ranks and accumulation, shape (B,), on any device;
                without it this micro-batch is the whole step.
            step_rows: number of rows of the whole step; needed with ``positions``. The losses of its micro-batches add
                up to its mean; where a wrapper *averages* gradients over ranks, multiply them by the number of ranks.
            step_weight: sum of P over the whole step's rows; needed with ``positions`` for the token mean.
            delimiter: answer delimiters, bool, shape (B, L); for isad.

        Raises:
            UserError: a row without maskable tokens, one with the mask token, or one of two arguments that go together.
        """
        if not bool(maskable.any(1).all()):
            empty = int((~maskable.any(1)).nonzero()[0])
            raise UserError(f"Noise: row {empty} of the batch: expected at least one maskable token, found none.")
        refuse_masked(input_ids, maskable, self.mask_id)
        if (positions is None) != (step_rows is None):
            raise UserError("Noise: expected positions and step_rows together, found one of them.")
        if "delimiter" in self.method.marks and delimiter is None:
            raise UserError(f"Noise: method '{self.method.name}': expected 'delimiter', found none.")
        device = input_ids.device
        whole = positions is None
        rows = Rows(
            position=torch.arange(len(input_ids), device=device) if whole else positions.to(device),
            step_rows=len(input_ids) if whole else step_rows,
            maskable=maskable,
            token_index=torch.arange(input_ids.shape[1], device=device),
            delimiter=None if delimiter is None else delimiter.to(device),
        )
        key, real = Key(self.seed, step), {"attention_mask": _before_padding(maskable)}
        draw = chosen(self.method.draw(key, rows, self.sampler), self.method, key, rows, real)
        noisy, mask, source = draw.noisy(input_ids, self.mask_id)
        row_weight = self.objective.row_weight(maskable)
        return NoisyRows(
            input_ids=noisy,
            mask=mask,
            source=source,
            targets=input_ids[source],
            draw=draw,
            row_weight=row_weight,
            step_weight=self._step_weight(row_weight, whole, step_rows, step_weight),
        )

    def _step_weight(
        self, row_weight: Tensor, whole: bool, step_rows: int | None, step_weight: float | None
    ) -> Tensor | float:
        if whole:
            return row_weight.sum()
        if self.objective.normalization == "row":
            return float(step_rows)
        if step_weight is None:
            raise UserError("Noise: the token mean over several micro-batches: expected step_weight, found none.")
        return step_weight

    def _fitted(self, p_of_t: str | Path | TSampler | None) -> TSampler | None:
        if not isinstance(p_of_t, str | Path):
            return p_of_t
        from stabledllm.ppots.record import FittedDensity  # scipy, only where a fit is read

        density = FittedDensity.load(Path(p_of_t).expanduser())
        density.refuse_other(self.method, str(p_of_t))
        return density.sampler


def refuse_masked(input_ids: Tensor, maskable: Tensor, mask_id: int) -> None:
    """Refuse rows that hold the mask token before their padding: it would be a target, or look masked."""
    wrong = ((input_ids == mask_id) & _before_padding(maskable)).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise UserError(f"Noise: row {row} of the batch: expected clean tokens, found the mask token {mask_id}.")


def _before_padding(maskable: Tensor) -> Tensor:
    """The tokens of each right-padded row, whose last one is maskable; bool, (B, L)."""
    return maskable.flip(1).cummax(1).values.flip(1)
