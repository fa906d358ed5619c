"""The squared norm of the output layer's gradient, row by row, from the forward pass alone.

The gradient of ``sum_i c_i CE_i`` with respect to the head's weight is ``sum_i c_i e_i h_i'``, e the softmax less the
one-hot target and h the hidden state, so that its squared norm is ``sum_ij c_i c_j <e_i, e_j> <h_i, h_j>`` over the
masked positions. That takes no backward pass and no V x D matrix.

Legend: m evaluations of a batch, S masked positions, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.forward.meter import Meter
from stabledllm.loss import row_losses
from stabledllm.models.evaluating import evaluating
from stabledllm.models.loss_head import whole_logits
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Draw, Method
from stabledllm.noise.streams import Key


class OutputLayerNorms(Meter):
    """A meter of losses and of squared norms of the output layer's gradient, one forward a row.

    Raises:
        UserError: a model that does not name its output layer (``get_output_embeddings``).

    >>> from stabledllm.gradient.example import example_meter
    >>> meter, t = example_meter(OutputLayerNorms), torch.tensor([0.5, 1.0]).double()
    >>> index, losses, squares = next(meter.norms(torch.tensor([0, 1]), t, Method.parse("fixedcount"), Key(0, 0)))
    >>> (squares > 0).all()
    tensor(True)
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = self.model.get_output_embeddings()
        if self.head is None:
            raise UserError(f"ppots-head: expected a model with output embeddings, found {type(self.model).__name__}.")

    @torch.no_grad()
    def norms(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Measure the losses and squared norms of n evaluations, batch by batch.

        Yields indices of evaluations, their losses in nats and their squared norms, float64, each of shape (m,). Views
        are averaged as in the row loss. Evaluation i draws its masks at position ``start + i`` of ``key``.
        """
        with evaluating(self.model):
            for chunk in self.chunks(row, method.views.count):
                batch, draw = self.draw(row, t, method, key, sampler or Uniform(), chunk, start)
                losses, squares = self._batch(batch, draw)
                self.require_finite(losses, row[chunk])
                self.require_finite(squares, row[chunk], "squared norms of the output layer's gradients")
                yield chunk, losses, squares

    def _batch(self, batch: dict[str, Tensor], draw: Draw) -> tuple[Tensor, Tensor]:
        calls: list[tuple[Tensor, Tensor]] = []
        hook = self.head.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
        try:
            with whole_logits():
                nll = self.cross_entropies(batch, draw)
        finally:
            hook.remove()
        ((hidden, logits),) = calls
        selected = draw.mask[draw.active]
        if hidden.dim() == 3:  # the head was run at every position
            at = getattr(self.model, "outputs_at", _outputs_at)
            hidden, logits = at(hidden, selected), at(logits, selected)
        used = draw.mask & draw.active[..., None]
        share = (draw.coefficient / draw.active.sum(1)[:, None, None])[used]
        targets = batch["input_ids"][draw.active.nonzero()[:, 0]][selected]
        losses = row_losses(nll, draw.mask, draw.coefficient, draw.active)
        counts = used.sum((1, 2)).tolist()
        parts = (x.split(counts) for x in (logits, targets, hidden, share))
        # Row by row, so that only one row's softmax errors, which are as large as its logits, are in memory.
        squares = [_square(*part) for part in zip(*parts, strict=True)]
        return losses.double().cpu(), torch.stack(squares).double().cpu()


def _outputs_at(values: Tensor, selected: Tensor) -> Tensor:
    """The values at the selected positions; a model whose outputs are shifted has a function of its own."""
    return values[selected]


def _square(logits: Tensor, targets: Tensor, hidden: Tensor, share: Tensor) -> Tensor:
    """Squared norm of one row, its used views together; in float32, or in float64 where the model is."""
    wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
    error, hidden, share = logits.to(wide).softmax(-1), hidden.to(wide), share.to(wide)
    error[torch.arange(len(error), device=error.device), targets] -= 1.0
    return share @ ((error @ error.T) * (hidden @ hidden.T)) @ share
