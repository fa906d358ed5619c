"""A seeded random projection of gradients to a few thousand coordinates, with unbiased inner products.

The k places are Q blocks of L. The gradient is cut into pieces of L coordinates; coordinate j of a piece gets a random
sign, the piece is rotated by a random number of places, and it is added to every block with a random sign for the piece
and the block. Products of coordinates of two pieces have mean 0 over the blocks' signs, so that each block's inner
product is unbiased by itself, and given the rest the blocks are independent: the standard error of their mean is the
projection's true error, whatever the gradient looks like (few huge coordinates, equal ones, periods). The coordinates'
signs and the rotations spread collisions as hashing would: two coordinates of different pieces meet with probability
1 / L.

All random numbers are a pure function of (seed, parameter, coordinate) by Philox.

Legend: m gradients, D coordinates, G pieces, L coordinates of a piece, Q blocks, k = Q L places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from stabledllm.forward.meter import Meter
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.gradient.per_row import GradientBatch, RowGradients
from stabledllm.loss import row_losses
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Draw, Method
from stabledllm.noise.philox import philox4x32
from stabledllm.noise.streams import Key

PLACES = 8192
BLOCKS = 16
"""Number of blocks of a projection: their spread gives its error to within a fifth."""
_CACHED = 2**28
"""Random numbers are cached for models of up to this many coordinates, and drawn again every time for larger ones."""
_AT_ONCE = 2**24
"""Number of coordinates projected at once; bounds the memory beside the gradient."""


class Sketch:
    """A random projection of gradients, applied to one named parameter after another.

    Args:
        sizes: number of coordinates of each parameter, by name, in the order of the flat gradient.
        places: k, a multiple of :data:`BLOCKS`.

    >>> Sketch({"weight": 100}, places=64).of(torch.ones(2, 100)).shape
    torch.Size([2, 64])
    """

    def __init__(self, sizes: dict[str, int], places: int = PLACES, seed: int = 0):
        if places < BLOCKS or places % BLOCKS:
            raise ValueError(f"expected a multiple of {BLOCKS} places, found {places}")
        self.sizes, self.places, self.seed = sizes, places, seed
        self.length = places // BLOCKS
        self._index = {name: i for i, name in enumerate(sizes)}
        self._cache: dict[tuple[str, int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, out: Tensor, name: str, gradients: Tensor) -> None:
        """Add the projection of one parameter's gradients to ``out``, in place.

        Args:
            out: shape (m, k), block by block.
            gradients: shape (m, size of the parameter).
        """
        step = max(1, _AT_ONCE // self.length) * self.length
        for start in range(0, gradients.shape[1], step):
            signs, order, of_block = self._drawn(name, start, min(step, gradients.shape[1] - start), gradients.device)
            signed = gradients[:, start : start + step] * signs
            pieces = torch.nn.functional.pad(signed, (0, len(order) - signed.shape[1]))[:, order]
            added = of_block.to(pieces.dtype) @ pieces.view(len(pieces), -1, self.length)
            out += added.flatten(1) / BLOCKS**0.5

    def of(self, flat: Tensor) -> Tensor:
        """The projections, (m, k), of whole flat gradients, (m, D)."""
        out, start = flat.new_zeros(len(flat), self.places), 0
        for name, size in self.sizes.items():
            self.add(out, name, flat[:, start : start + size])
            start += size
        return out

    def _drawn(self, name: str, start: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The random numbers of ``count`` coordinates from ``start`` on.

        Their signs, float32; the order of their pieces' rotated places, (G L,); and the pieces' signs in each block,
        float32, (Q, G).
        """
        if (name, start, device) in self._cache:
            return self._cache[name, start, device]
        groups = -(-count // self.length)
        # The counter's third word differs for a parameter's coordinates (lanes of 128) and for its pieces.
        bits = _bits(self._words(name, start // 128, -(-count // 128) + 1, 0, device)).flatten()
        signs = (2 * bits[start % 128 :][:count] - 1).float()
        words = self._words(name, start // self.length, groups, 1, device)
        place = (torch.arange(self.length, device=device) + words[:, :1]) % self.length
        order = (place + torch.arange(groups, device=device)[:, None] * self.length).flatten()
        of_block = (2 * _bits(words[:, 1])[:, :BLOCKS].T - 1).float()
        if sum(self.sizes.values()) <= _CACHED:
            self._cache[name, start, device] = signs, order, of_block
        return signs, order, of_block

    def _words(self, name: str, first: int, count: int, kind: int, device: torch.device) -> Tensor:
        counter = torch.arange(first, first + count, device=device)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return philox4x32(counter, zero + self._index[name], zero + kind, zero, self.seed)


def _bits(words: Tensor) -> Tensor:
    """The 32 bits of each word, 0 or 1, in a new last dimension."""
    return (words[..., None] >> torch.arange(32, device=words.device)) & 1


def by_block(vectors: Tensor) -> Tensor:
    """Projections (..., k) as Q blocks, (Q, ..., L), scaled so that each block's inner products are unbiased.

    >>> by_block(torch.ones(3, 32)).shape
    torch.Size([16, 3, 2])
    """
    return torch.stack(vectors.tensor_split(BLOCKS, dim=-1)) * BLOCKS**0.5


def block_products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of projections, (m, k) and (n, k), by block, float64, (Q, m, n); their mean is the estimate.

    >>> block_products(torch.ones(2, 32), torch.ones(3, 32)).mean(0)
    tensor([[32., 32., 32.],
            [32., 32., 32.]], dtype=torch.float64)
    """
    return (by_block(one) @ by_block(other).transpose(1, 2)).double()


class ProjectedGradients(Meter):
    """A meter like :class:`RowGradients`, of projections: for models of which memory cannot hold many gradients.

    It takes one backward a row. Each parameter's gradient is projected and freed as soon as backward has made it, so
    that not even one full gradient is in memory at once.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter, t = example_meter(ProjectedGradients), torch.tensor([0.5, 1.0]).double()
    >>> next(meter.gradients(torch.tensor([0, 1]), t, Method(), Key(0, 0))).gradients.shape == (2, PLACES)
    True
    """

    def __init__(self, *args, parameters: Sequence[str] | None = None, places: int = PLACES, **kwargs):
        super().__init__(*args, **kwargs)
        self.parameters = chosen_parameters(self.model, parameters)
        self.sketch = Sketch({name: p.numel() for name, p in self.parameters.items()}, places)
        self.size = places

    def gradients(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None, start: int = 0
    ) -> Iterator[GradientBatch]:
        """Like :meth:`RowGradients.gradients`, with projections of shape (m, k) in the place of gradients."""
        measured = set(self.parameters.values())
        frozen = [p for p in self.model.parameters() if p.requires_grad and p not in measured]
        for p in frozen:
            p.requires_grad_(False)
        try:
            with self.mode(self.model):
                for chunk in self.chunks(row, method.views.count):
                    batch, draw = self.draw(row, t, method, key, sampler or Uniform(), chunk, start)
                    losses = torch.zeros(len(chunk), dtype=torch.float64)
                    out = torch.zeros(len(chunk), self.size, device=draw.t.device)
                    for i in range(len(chunk)):
                        losses[i] = self._project(batch, draw, i, out[i : i + 1])
                    self.require_finite(losses, row[chunk])
                    self.require_finite(out, row[chunk], "gradients")
                    yield GradientBatch(chunk, losses, out)
        finally:
            for p in frozen:
                p.requires_grad_(True)

    def _project(self, batch: dict[str, Tensor], draw: Draw, i: int, out: Tensor) -> float:
        """Add the projected gradient of evaluation i to ``out`` during backward; returns its loss."""
        one = {name: value[i : i + 1] for name, value in batch.items()}
        part = draw.row(i)

        def project(parameter: torch.nn.Parameter, name: str) -> None:
            self.sketch.add(out, name, parameter.grad.reshape(1, -1).float())
            parameter.grad = None

        parameters = self.parameters.items()
        hooks = [p.register_post_accumulate_grad_hook(partial(project, name=name)) for name, p in parameters]
        earlier = {p: p.grad for p in self.parameters.values()}
        for p in earlier:
            p.grad = None
        try:
            loss = row_losses(self.cross_entropies(one, part), part.mask, part.coefficient, part.active).sum()
            if loss.requires_grad:
                loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
            for p, grad in earlier.items():
                p.grad = grad
        return float(loss.detach())


GradientMeter = RowGradients | ProjectedGradients
