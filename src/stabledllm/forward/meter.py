"""Row losses of a model under given noise, in batches that fill the device.

Legend: n requested evaluations, K views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow, collate, maskable_sizes
from stabledllm.data.token_rows import lengths_of
from stabledllm.forward.nll import forward_nll
from stabledllm.models.evaluating import evaluating
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.runtime.finite import require_finite


@dataclass(frozen=True)
class MeteredModel:
    """A model and its token ids: all that a meter needs; a ``LoadedModel``, which has the same names, does as well."""

    model: Callable
    """Called as ``model(noisy_ids, attention_mask, selected=mask, targets=ids).nll``."""
    mask_id: int | None
    pad_id: int


class Meter:
    """Rows under given noise, in batches of near-equal length; counts its forward rows in ``forwards``.

    Args:
        loaded: the model and its token ids.
        rows: the data.
        tokens_per_batch: padded tokens in one forward.
        progress: called with the number of forward rows just done.
        objective: under its token mean a row counts by :meth:`shares`, in losses and gradients alike.
    """

    takes_whole_steps = False
    """Whether rows are weighed by whoever puts steps together, as training does, and not here."""
    ratios_per_row = 1
    """Mask ratios that an evaluation of a row takes."""
    row_copies = 1
    """Times that a row's tokens go through the model in one view."""
    form_names: tuple[str, ...] = ()
    """Tensors of a batch that the model takes by name, besides the tokens and their attention mask."""

    def __init__(
        self,
        loaded: MeteredModel,
        rows: Sequence[TokenRow],
        objective: Objective,
        *,
        tokens_per_batch: int = 4096,
        progress: Callable[[int], None] | None = None,
    ):
        self.model, self.mask_id, self.pad_id = loaded.model, loaded.mask_id, loaded.pad_id
        self.rows, self.objective = rows, objective
        self.tokens_per_batch, self.progress = tokens_per_batch, progress
        self.forwards = 0
        self._sizes: dict[bool, Tensor] = {}

    def sizes(self, method: Method) -> Tensor:
        """Tokens P of every row of the data that the method may mask, int64, shape (rows,)."""
        if method.syrm not in self._sizes:
            self._sizes[method.syrm] = maskable_sizes(self.rows, method)
        return self._sizes[method.syrm]

    def shares(self, method: Method) -> Tensor:
        """What every row of the data counts in a step's mean, the mean row 1: P / E[P] under the token mean.

        A step's token mean is ``sum P l / sum P``; to first order in 1 / n that is the mean of ``(P / E[P]) (l - m)``
        plus m, its expectation, and this is what is measured: losses and gradients come times the share, and m times
        the share is taken off where a spread over rows is worked out (``shares.py``).
        """
        return self.objective.row_share(self.sizes(method))

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each row."""
        return torch.tensor(lengths_of(self.rows))

    def chunks(self, row: Tensor, views: int) -> list[Tensor]:
        """Indices of evaluations, of near-equal length, in batches of at most ``tokens_per_batch``."""
        return filled_batches(self.lengths[row], views * self.row_copies, self.tokens_per_batch)

    def draw(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[dict[str, Tensor], Draw]:
        """Rows of the evaluations in ``chunk``, collated, and their noise; i draws at position ``start + i``."""
        if method.objective != self.objective:
            raise ValueError(f"expected a method under {self.objective}, found one under {method.objective}")
        device = next(self.model.parameters()).device
        batch = collate([self.rows[i] for i in row[chunk].tolist()], self.pad_id, syrm=method.syrm)
        batch = {name: value.to(device) for name, value in batch.items()}
        noise = Rows(
            position=start + chunk.to(device),
            step_rows=start + len(row),
            maskable=batch["maskable"],
            token_index=torch.arange(batch["input_ids"].shape[1], device=device),
            delimiter=batch["delimiter"],
        )
        draw = self.noise_at(t[chunk].to(device), method, key, noise, sampler)
        return batch, self._shared(draw, row[chunk], method)

    def noise_at(self, t: Tensor, method: Method, key: Key, noise: Rows, sampler: TSampler) -> Draw:
        """The noise of rows at given mask ratios."""
        return method.draw_at(t, key, noise, sampler)

    def _shared(self, draw: Draw, row: Tensor, method: Method) -> Draw:
        """The draw with each row's coefficients times its share."""
        if self.objective.normalization == "row" or self.takes_whole_steps:
            return draw
        share = self.shares(method)[row].to(draw.coefficient)
        return replace(draw, coefficient=draw.coefficient * share[:, None, None])

    def cross_entropies(self, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """Cross-entropies at the masked positions of the active views, row-major, shape (M,); one forward."""
        form = {name: batch[name] for name in self.form_names}
        nll, forwards = forward_nll(self.model, batch, draw, self.mask_id, form=form)
        self.forwards += forwards
        if self.progress:
            self.progress(forwards)
        return nll

    def require_finite(self, values: Tensor, row: Tensor, what: str = "losses") -> None:
        """Pass what was measured of evaluations, shape (n, ...), or refuse it: no figure is made of NaN or infinity.

        Args:
            row: index of the row of each evaluation, shape (n,).

        Raises:
            NotFinite: naming the model and the first row.
        """
        bad = (~values.detach().isfinite()).flatten(1).any(1) if values.dim() > 1 else ~values.detach().isfinite()
        if bool(bad.any()):
            origin = self.rows[int(row[bad.cpu()][0])].origin
            require_finite(values, f"{what} of {type(self.model).__name__} on {origin or 'the rows'}")


class LossMeter(Meter):
    """Measures losses without gradients."""

    @torch.no_grad()
    def view_losses(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The loss of each view alone and which views are used; a row's loss is the mean over its used views.

        Evaluation i draws its masks at position ``start + i`` of ``key``: the result does not depend on batching.

        Args:
            row: index of the row of each evaluation, shape (n,). t: its mask ratio, float64, shape (n,).
            sampler: density whose weight multiplies the losses; without it they are the plain l(x0, t, M).

        Returns:
            losses in nats, float64, shape (n, K), 0 for unused views; used, bool, shape (n, K).

        Raises:
            NotFinite: a loss that is NaN or infinite.
        """
        losses = torch.zeros(len(row), method.views.count, dtype=torch.float64)
        used = torch.zeros(len(row), method.views.count, dtype=torch.bool)
        with evaluating(self.model):
            for chunk in self.chunks(row, method.views.count):
                losses[chunk], used[chunk] = self._one_batch(row, t, method, key, sampler or Uniform(), chunk, start)
        self.require_finite(losses, row)
        return losses, used

    def losses(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None, start: int = 0
    ) -> Tensor:
        """Row losses, the used views averaged; float64, shape (n,)."""
        views, used = self.view_losses(row, t, method, key, sampler, start)
        return views.sum(1) / used.sum(1)

    def _one_batch(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        batch, draw = self.draw(row, t, method, key, sampler, chunk, start)
        nll = self.cross_entropies(batch, draw).double()
        used = draw.mask & draw.active[..., None]
        each = torch.zeros(draw.mask.shape, dtype=torch.float64, device=nll.device)
        each = each.masked_scatter(used, nll * draw.coefficient[used]).sum(-1)
        return each.cpu(), draw.active.cpu()


def filled_batches(length: Tensor, views: int, tokens: int) -> list[Tensor]:
    """Indices of evaluations of the given row lengths, shape (n,), longest first, in batches of at most ``tokens``
    padded tokens over their views; never empty, so that a row longer than that goes alone."""
    order, chunks, start = length.argsort(stable=True, descending=True), [], 0
    while start < len(order):
        size = max(1, tokens // (views * int(length[order[start]])))
        chunks.append(order[start : start + size])
        start += size
    return chunks
