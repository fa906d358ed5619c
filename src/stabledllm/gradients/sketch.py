"""A seeded random projection of gradients: inner products without bias, at a few thousand coordinates.

Coordinate j of a block is multiplied by a random sign and added to place j mod k. Products of two coordinates that
share a place have mean 0 over the signs, so the sum over places of a product of sketches is unbiased for the inner
product, and every place (times k) is by itself. Signs are a pure function of (seed, block, coordinate) by Philox.

Legend: m gradients, D coordinates, k places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stabledllm.gradients.parameters import chosen_parameters
from stabledllm.gradients.per_row import RowGradients
from stabledllm.measure import Meter
from stabledllm.noise.methods import Draw, Method
from stabledllm.noise.philox import philox4x32
from stabledllm.noise.streams import Key
from stabledllm.noise.t_samplers import TSampler, Uniform
from stabledllm.objective import row_losses

PLACES = 8192
_KEPT = 2**28
"""Signs of models up to this many coordinates are kept; larger ones are drawn again for every block."""


class Sketch:
    """Projects gradients of named parameter blocks, block by block.

    Args:
        sizes: number of coordinates of each block, by name, in the order of the flat gradient.
    """

    def __init__(self, sizes: dict[str, int], places: int = PLACES, seed: int = 0):
        self.sizes, self.places, self.seed = sizes, places, seed
        self._index = {name: i for i, name in enumerate(sizes)}
        self._kept: dict[tuple[str, torch.device], Tensor] = {}

    def add(self, out: Tensor, name: str, block: Tensor) -> None:
        """Add the projection of one block to ``out``, in place.

        Args:
            out: shape (m, k). block: gradients of the named block, shape (m, its size).
        """
        full = block.shape[1] // self.places * self.places
        signed = block * self._signs(name, block.device)
        if full:
            out += signed[:, :full].view(len(block), -1, self.places).sum(1)
        out[:, : block.shape[1] - full] += signed[:, full:]

    def of(self, flat: Tensor) -> Tensor:
        """Projections of whole flat gradients, (m, D) to (m, k)."""
        out, start = flat.new_zeros(len(flat), self.places), 0
        for name, size in self.sizes.items():
            self.add(out, name, flat[:, start : start + size])
            start += size
        return out

    def _signs(self, name: str, device: torch.device) -> Tensor:
        """1 or -1 of every coordinate of a block, float32."""
        if (name, device) in self._kept:
            return self._kept[name, device]
        size = self.sizes[name]
        counter = torch.arange(-(-size // 128), device=device)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        words = philox4x32(counter, zero + self._index[name], zero, zero, self.seed)
        bits = (words[..., None] >> torch.arange(32, device=device)) & 1
        signs = (2 * bits.flatten()[:size] - 1).float()
        if sum(self.sizes.values()) <= _KEPT:
            self._kept[name, device] = signs
        return signs


class ProjectedGradients(Meter):
    """:class:`RowGradients` for models whose gradients do not fit many times: their sketches, one backward a row.

    Each parameter's gradient is projected and freed as soon as backward has made it, so that no second full
    gradient, and not even a first one, is held at once.
    """

    def __init__(
        self, *args, parameters: Sequence[str] | None = None, places: int = PLACES, sketch_seed: int = 0, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.parameters = chosen_parameters(self.model, parameters)
        self.sketch = Sketch({name: p.numel() for name, p in self.parameters.items()}, places, sketch_seed)
        self.size = places

    def gradients(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As :meth:`RowGradients.gradients`, with sketches of shape (m, k) in the place of gradients."""
        was_training = self.model.training
        self.model.eval()
        frozen = [p for p in self.model.parameters() if p.requires_grad and not any(p is q for q in self._wanted())]
        for p in frozen:
            p.requires_grad_(False)
        try:
            for chunk in self.chunks(row, method.views.count):
                batch, draw = self.draw(row, t, method, key, sampler or Uniform(), chunk, start)
                losses = torch.zeros(len(chunk), dtype=torch.float64)
                out = torch.zeros(len(chunk), self.size, device=draw.t.device)
                for i in range(len(chunk)):
                    losses[i] = self._project(batch, draw, i, out[i : i + 1])
                self.require_finite(losses, row[chunk])
                self.require_finite(out, row[chunk], "gradients")
                yield chunk, losses, out
        finally:
            for p in frozen:
                p.requires_grad_(True)
            self.model.train(was_training)

    def _wanted(self) -> list[torch.nn.Parameter]:
        return list(self.parameters.values())

    def _project(self, batch: dict[str, Tensor], draw: Draw, i: int, out: Tensor) -> float:
        """Loss of evaluation i; its gradient is added to ``out`` during backward."""
        one = {name: value[i : i + 1] for name, value in batch.items()}
        part = draw.row(i)

        def taker(name: str):
            def take(parameter: torch.nn.Parameter) -> None:
                self.sketch.add(out, name, parameter.grad.reshape(1, -1).float())
                parameter.grad = None

            return take

        hooks = [p.register_post_accumulate_grad_hook(taker(name)) for name, p in self.parameters.items()]
        kept = {p: p.grad for p in self._wanted()}
        for p in kept:
            p.grad = None
        try:
            loss = row_losses(self.cross_entropies(one, part), part.mask, part.coefficient, part.active).sum()
            if loss.requires_grad:
                loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
            for p, grad in kept.items():
                p.grad = grad
        return float(loss.detach())


GradientMeter = RowGradients | ProjectedGradients
