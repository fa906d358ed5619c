"""Meters: they measure the row losses of a model under given noise, in batches that fill the device.

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
from stabledllm.forward.chosen import chosen
from stabledllm.forward.nll import forward_nll
from stabledllm.models.evaluating import evaluating
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.runtime.finite import require_finite


@dataclass(frozen=True)
class MeteredModel:
    """A model and its token ids: all that a meter needs; a ``LoadedModel``, which has the same names, does as well.

    >>> MeteredModel(model=print, mask_id=256, pad_id=257).name
    'model'
    """

    model: Callable
    """Called as ``model(noisy_ids, attention_mask, selected=mask, targets=ids).nll``."""
    mask_id: int | None
    pad_id: int
    name: str = "model"
    """What records call it."""


class Meter:
    """The base of meters: sends rows with given noise through a model, in batches of rows of similar length.

    An evaluation is one row at one mask ratio. ``forwards`` counts the forward rows so far.

    Args:
        loaded: the model and its token ids.
        rows: the data.
        tokens_per_batch: padded tokens in one forward.
        progress: called with the number of forward rows just done.
        objective: under its token mean a row counts by :meth:`shares`, in losses and gradients alike.

    >>> loaded = MeteredModel(model=None, mask_id=256, pad_id=257)
    >>> Meter(loaded, [TokenRow([1, 2, 3, 4], 1), TokenRow([1, 2], 1)], Objective()).lengths
    tensor([4, 2])
    """

    takes_whole_steps = False
    """Whether the code that combines rows into steps weighs them, as in training, so that the meter must not."""
    ratios_per_row = 1
    """Number of mask ratios that an evaluation of a row takes."""
    row_copies = 1
    """Number of times that a row's tokens go through the model in one view."""
    form_names: tuple[str, ...] = ()
    """Tensors of a batch that the model takes by name, besides the tokens and their attention mask."""
    mode = staticmethod(evaluating)
    """The context that the model is measured in."""

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
        """The number P of tokens that the method may mask, for every row of the data, int64, shape (rows,)."""
        if method.syrm not in self._sizes:
            self._sizes[method.syrm] = maskable_sizes(self.rows, method)
        return self._sizes[method.syrm]

    def shares(self, method: Method) -> Tensor:
        """The weight of every row of the data in a step's mean, divided by the mean weight: P / E[P] or 1.

        It is P / E[P] under the token mean. A step's token mean is ``sum P l / sum P``, to first order in 1 / n the
        mean of ``(P / E[P]) (l - m)`` plus m, its expectation. That is what is measured: losses and gradients are
        multiplied by the share, and m times the share is subtracted where a spread over rows is computed
        (``stats/shares.py``).
        """
        return self.objective.row_share(self.sizes(method))

    @cached_property
    def lengths(self) -> Tensor:
        """The number of tokens of each row."""
        return torch.tensor(lengths_of(self.rows))

    def chunks(self, row: Tensor, views: int) -> list[Tensor]:
        """The indices of evaluations in batches of similar row length, of at most ``tokens_per_batch`` tokens each."""
        return filled_batches(self.lengths[row], views * self.row_copies, self.tokens_per_batch)

    def draw(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[dict[str, Tensor], Draw]:
        """The collated rows of the evaluations in ``chunk``, and their noise; i draws at position ``start + i``."""
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
        draw = chosen(draw, method, key, noise, batch, self.model, self.mask_id)
        self._made(draw.forwards)
        return batch, self._times_share(draw, row[chunk], method)

    def noise_at(self, t: Tensor, method: Method, key: Key, noise: Rows, sampler: TSampler) -> Draw:
        """Draw the noise of rows at given mask ratios."""
        return method.draw_at(t, key, noise, sampler)

    def _times_share(self, draw: Draw, row: Tensor, method: Method) -> Draw:
        """The draw with the coefficients of each row multiplied by its share."""
        if self.objective.normalization == "row" or self.takes_whole_steps:
            return draw
        share = self.shares(method)[row].to(draw.coefficient)
        return replace(draw, coefficient=draw.coefficient * share[:, None, None])

    def cross_entropies(self, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """The cross-entropies at the masked positions of the active views, row-major, shape (M,), in one forward."""
        form = {name: batch[name] for name in self.form_names}
        nll, forwards = forward_nll(self.model, batch, draw, self.mask_id, form=form)
        self._made(forwards)
        return nll

    def _made(self, forwards: int) -> None:
        self.forwards += forwards
        if self.progress and forwards:
            self.progress(forwards)

    def require_finite(self, values: Tensor, row: Tensor, what: str = "losses") -> None:
        """Refuse NaN and infinity among what was measured of evaluations, shape (n, ...).

        Args:
            row: index of the row of each evaluation, shape (n,).

        Raises:
            NotFinite: it names the model and the first such row.
        """
        bad = (~values.detach().isfinite()).flatten(1).any(1) if values.dim() > 1 else ~values.detach().isfinite()
        if bool(bad.any()):
            origin = self.rows[int(row[bad.cpu()][0])].origin
            require_finite(values, f"{what} of {type(self.model).__name__} on {origin or 'the rows'}")


class LossMeter(Meter):
    """A meter of losses, without gradients.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> loaded = MeteredModel(model, mask_id=model.config.mask_token_id, pad_id=0)
    >>> meter = LossMeter(loaded, [TokenRow([1, 2, 3, 4], prompt_length=1)], Objective())
    >>> meter.losses(torch.tensor([0, 0]), torch.tensor([0.5, 1.0]).double(), Method(), Key(0, 0)).shape
    torch.Size([2])
    """

    @torch.no_grad()
    def view_losses(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The loss of each view alone, and which views are active; a row's loss is the mean over its active views.

        Evaluation i draws its masks at position ``start + i`` of ``key``: the result does not depend on batching.

        Args:
            row: index of the row of each evaluation, shape (n,).
            t: its mask ratio, float64, shape (n,).
            sampler: density whose weight multiplies the losses; without it they are the plain l(x0, t, M).

        Returns:
            losses in nats, float64, shape (n, K), 0 for inactive views; active, bool, shape (n, K).

        Raises:
            NotFinite: a loss that is NaN or infinite.
        """
        losses = torch.zeros(len(row), method.views.count, dtype=torch.float64)
        active = torch.zeros(len(row), method.views.count, dtype=torch.bool)
        with self.mode(self.model):
            for chunk in self.chunks(row, method.views.count):
                losses[chunk], active[chunk] = self._one_batch(row, t, method, key, sampler or Uniform(), chunk, start)
        self.require_finite(losses, row)
        return losses, active

    def losses(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None, start: int = 0
    ) -> Tensor:
        """The row losses, each the mean over its active views; float64, shape (n,)."""
        losses, active = self.view_losses(row, t, method, key, sampler, start)
        return losses.sum(1) / active.sum(1)

    def _one_batch(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler, chunk: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        batch, draw = self.draw(row, t, method, key, sampler, chunk, start)
        nll = self.cross_entropies(batch, draw).double()
        used = draw.mask & draw.active[..., None]
        tokens = torch.zeros(draw.mask.shape, dtype=torch.float64, device=nll.device)
        losses = tokens.masked_scatter(used, nll * draw.coefficient[used]).sum(-1)
        return losses.cpu(), draw.active.cpu()


def filled_batches(length: Tensor, views: int, tokens: int) -> list[Tensor]:
    """The indices of evaluations, longest row first, in batches of at most ``tokens`` padded tokens over all views.

    No batch is empty: a row that is longer than ``tokens`` makes a batch of its own.

    Args:
        length: row length of each evaluation, shape (n,).

    >>> filled_batches(torch.tensor([3, 5, 2, 9]), views=1, tokens=6)
    [tensor([3]), tensor([1]), tensor([0, 2])]
    """
    order, chunks, start = length.argsort(stable=True, descending=True), [], 0
    while start < len(order):
        size = max(1, tokens // (views * int(length[order[start]])))
        chunks.append(order[start : start + size])
        start += size
    return chunks
