"""The noise of the loss of rows in blocks: A, B and C, the split of B, and steps drawn as in training.

Given its t a block's loss does not depend on the other blocks' noise, which sees clean blocks only. So one forward with
one t for all blocks of a row tells every block's moments at that t, and with them the noise under t of their own.

Legend: a rows, m blocks of a row at most, b rates, c masks at each rate, S steps, n rows of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stabledllm.forward.blocks import BlockMeter
from stabledllm.noise.densities import TSampler
from stabledllm.noise.maskers import Bernoulli
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ends, Ratio, of_ratio
from stabledllm.variance.components import UNIT, NestedLosses, nested_losses, rate_noise
from stabledllm.variance.drawn import HEAVY_SHARE, Measured, drawn_rows, step_keys
from stabledllm.variance.some_masked import SomeMasked, chance_of_some


@dataclass(frozen=True)
class NestedBlocks(NestedLosses):
    """Losses of a nested design in blocks: rows, their blocks, rates of each row, masks at each rate.

    ``losses`` and ``chance`` are those of blocks, shapes (a, m, b, c) and (a, m, b), 0 where a row has fewer. Of whole
    rows are their sums; B is that of blocks with a t of their own.

    >>> losses = torch.tensor([1.0, 3.0]).expand(2, 2, 2, 2).mT.double()  # at either rate each block has one loss
    >>> nested = NestedBlocks(losses, torch.arange(2), None, part=torch.full((2, 2), 0.5))
    >>> [x.tolist() for x in (nested.row_means, nested.rate_noise, nested.rate_noise_of_one_t)]
    [[4.0, 4.0], [4.0, 4.0], [8.0, 8.0]]
    """

    part: Tensor | None = None
    """Share P_b / P of each block in its row, float64, shape (a, m)."""

    def select(self, keep: Tensor) -> NestedBlocks:
        return replace(super().select(keep), part=self.part[keep])

    @cached_property
    def block_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """g, v and the variance of the estimate of g by row, block and rate, each of shape (a, m, b)."""
        return NestedLosses.cell_moments.func(self)

    @cached_property
    def cell_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same of whole rows (a, b): masks of a row's blocks are independent given its rate."""
        return tuple(moment.sum(1) for moment in self.block_moments)

    def by_unit(self) -> NestedLosses:
        """The same design with each block as a row."""
        real, rates = self.part > 0, self.losses.shape[2]
        t = self.t[:, None].expand(*self.part.shape, rates)[real]
        chance = None if self.chance is None else self.chance[real]
        return NestedLosses(self.losses[real], torch.arange(len(t)), self.width, chance, t=t)

    @cached_property
    def rate_noise_by_block(self) -> Tensor:
        """Unbiased Var_t of what each block adds to its row's loss, shape (a, m)."""
        return rate_noise(*self.block_moments[::2], self.width)

    @property
    def rate_noise(self) -> Tensor:
        """Unbiased Var_t g of each row whose blocks have a t of their own, shape (a,)."""
        return self.rate_noise_by_block.sum(1)

    @property
    def rate_noise_of_one_t(self) -> Tensor:
        """The same of rows whose blocks share one t, shape (a,)."""
        return rate_noise(*self.cell_moments[::2], self.width)


def nested_blocks(
    meter: BlockMeter, method: Method, *, rows: int, rates: int, masks: int, seed: int, design: str = "cells"
) -> NestedBlocks:
    """Measure the losses of the blocks of ``rows`` distinct rows under uniform t, one for all blocks of a row.

    Independent masks of single views are drawn given that they hide a token of the block.

    >>> from stabledllm.noise.objective import Objective
    >>> class Constant:  # a meter of five rows in two blocks of one token, each with the loss 1
    ...     rows, objective, block_sizes, forwards = range(5), Objective(), torch.ones(5, 2, dtype=torch.int64), 0
    ...     def block_losses(self, row, t, method, key, sampler=None):
    ...         return torch.ones(len(row), 2).double()
    >>> nested_blocks(Constant(), Method(), rows=3, rates=4, masks=2, seed=0, design="iid").losses.shape
    torch.Size([3, 2, 4, 2])
    """
    given = given_hidden(method)
    drawing = replace(method, masker=SomeMasked()) if given else method
    nested = nested_losses(_ByBlock(meter), drawing, rows=rows, rates=rates, masks=masks, seed=seed, design=design)
    sizes = meter.block_sizes[nested.rows]
    chance = chance_of_some(nested.t[:, None], sizes[..., None], meter.objective) if given else None
    part = sizes / sizes.sum(1, keepdim=True).double()
    losses = nested.losses.permute(0, 3, 1, 2).contiguous()
    return NestedBlocks(losses, nested.rows, nested.width, chance, nested.share, nested.t, part)


@dataclass(frozen=True)
class _ByBlock:
    """A meter whose losses are those of blocks, shape (n, m)."""

    meter: BlockMeter

    def __getattr__(self, name: str) -> object:
        return getattr(self.meter, name)

    def losses(self, *given) -> Tensor:
        return self.meter.block_losses(*given)


def given_hidden(method: Method) -> bool:
    """Whether a method has independent masks of single views, which can be drawn given that they hide a token.

    >>> given_hidden(Method.parse("lowdisc")), given_hidden(Method.parse("mirror"))
    (True, False)
    """
    return method.masker == Bernoulli() and method.views.count == 1


def step_rates(method: Method, sampler: TSampler, key: Key, sizes: Tensor, *, one_t: bool = False) -> Tensor:
    """The mask ratio of each block of a step's rows as training draws them, float64, shape (n, m); 0 for no block.

    Args:
        sizes: response tokens of each block, 0 where a row has fewer, shape (n, m).
        one_t: one t for all blocks of a row.

    >>> step_rates(Method(), Method().sampler(), Key(0, 0), torch.tensor([[2, 1], [2, 0]])) > 0
    tensor([[ True,  True],
            [ True, False]])
    """
    real, cpu = sizes > 0, torch.device("cpu")
    if one_t:
        t = sampler.icdf(method.source.uniforms(key, len(sizes), cpu))
        return t[:, None] * real
    t = torch.zeros(sizes.shape, dtype=torch.float64)
    t[real] = sampler.icdf(method.source.uniforms(key, int(real.sum()), cpu))
    return t


@dataclass(frozen=True)
class RateSplit:
    """The mask-rate noise of single blocks, split between blocks of a row and between rows.

    With s_b = P_b / P, the noise of single blocks is ``E sum_b s_b Var_t g_b``. Between rows is what the mean over a
    row's blocks at one t keeps of it, ``E Var_t[sum_b s_b g_b]``, which is B where a row's blocks share one t. Between
    blocks is the rest: the part in which the blocks of a row answer to t unlike each other.
    """

    of_blocks: Estimate
    between_blocks: Estimate
    between_rows: Estimate
    own_t: Estimate
    """B where every block has a t of its own."""
    cost_of_one_t: Ratio
    """A + B with one t for all blocks of a row over A + B with a t of their own."""
    blocks_per_row: float

    @classmethod
    def of(cls, nested: NestedBlocks) -> RateSplit:
        """The split of a nested design's B; all errors are over rows.

        >>> losses = torch.tensor([1.0, 3.0]).expand(2, 2, 2, 2).mT.double()  # the blocks answer to t alike
        >>> split = RateSplit.of(NestedBlocks(losses, torch.arange(2), None, part=torch.full((2, 2), 0.5).double()))
        >>> split.of_blocks.value, split.between_blocks.value, split.between_rows.value, split.own_t.value
        (8.0, 0.0, 8.0, 4.0)
        """
        single = (nested.rate_noise_by_block / nested.part.clamp(min=1e-300)).where(nested.part > 0, 0.0).sum(1)
        own, shared, pattern = nested.rate_noise, nested.rate_noise_of_one_t, nested.cell_moments[1] @ nested.weight
        top, bottom = pattern + shared, pattern + own

        def difference(r: float) -> Ends:
            return _mean(top - r * bottom).interval()

        ratio = float(top.mean() / bottom.mean()) if _mean(bottom).interval()[0] > 0 else math.nan
        parts = (_mean(x) for x in (single, single - shared, shared, own))
        return cls(*parts, of_ratio(ratio, difference), float((nested.part > 0).sum(1).double().mean()))

    def sentence(self, noise: str = "noise") -> str:
        """What sharing one t costs in such noise, in words."""
        ratio = self.cost_of_one_t
        if not ratio.is_known:
            what = "" if noise == "noise" else f" in {noise}"
            return f"What one t for all blocks of a row (block_t=row) costs{what} is not known from so few draws."
        verdict = {False: "more noise", True: "less noise", None: "too close to tell"}[ratio.below_one]
        return (
            f"One t for all blocks of a row (block_t=row) has {ratio.value:.4g} times (95 % interval "
            f"{ratio.ci_low:.4g} to {ratio.ci_high:.4g}) the {noise} A + B of a t of its own for each block: {verdict}."
        )

    def as_dict(self, noise: str = "noise") -> dict:
        """The JSON form, ``blocks`` in ``decomposition.json``, with the sentence on such noise."""
        names = ("of_blocks", "between_blocks", "between_rows", "own_t", "cost_of_one_t")
        parts = {name: getattr(self, name).as_dict() for name in names}
        return parts | {"blocks_per_row": self.blocks_per_row, "sentence": self.sentence(noise)}


def _mean(each: Tensor) -> Estimate:
    return Estimate(value=float(each.mean()), stderr=float(each.std()) / len(each) ** 0.5, n=len(each), unit=UNIT)


@dataclass(frozen=True)
class MeasuredBlocks(Measured):
    """The losses of drawn steps whose masks were drawn given that they hide a token.

    >>> drawn = MeasuredBlocks(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), True, 1.0, hidden=torch.ones(2, 2))
    >>> drawn.per_row_variance.value
    5.0
    """

    hidden: Tensor | float = 0.0
    """Variance of each row's masks that this leaves out of ``row_losses``, shape (S, n)."""

    @property
    def row_squares(self) -> Tensor:
        return super().row_squares + self.hidden

    @property
    def squares(self) -> Tensor:
        squares = super().squares
        hidden = torch.as_tensor(self.hidden).expand(self.row_losses.shape)
        hidden = hidden if self.independent_rows else hidden.mean(1, keepdim=True)
        return squares + hidden * (1 - 1 / squares.numel())  # their sum is divided by their number less 1


def measure_blocks(
    meter: BlockMeter,
    method: Method,
    sampler: TSampler,
    *,
    rows: int,
    steps: int,
    seed: int,
    rare: Callable[[Method, TSampler], float] = lambda method, sampler: 0.0,
    one_t: bool = False,
) -> MeasuredBlocks:
    """Draw ``steps`` training steps of ``rows`` iid data rows each, whose units are numbered as in training.

    Independent masks of single views are drawn given that they hide a token, and what that leaves out of their variance
    is added: with q the chance of it, ``q l`` has the same mean as the loss and ``q (1 - q) l²`` less variance.

    Args:
        rare: the part of a row's variance that drawn steps hardly ever show, for other independent masks; a large one
            makes a heavy tail.

    >>> from stabledllm.noise.objective import Objective
    >>> class Constant:  # a meter of five rows in two blocks of one token, each with the loss 1
    ...     rows, objective, block_sizes, forwards = range(5), Objective(), torch.ones(5, 2, dtype=torch.int64), 0
    ...     def block_losses(self, row, t, method, key, sampler=None):
    ...         return torch.ones(len(row), 2).double()
    >>> from stabledllm.noise.densities import Uniform
    >>> counts = Method.parse("lowdisc+fixedcount")
    >>> print(measure_blocks(Constant(), counts, Uniform(), rows=8, steps=4, seed=0).mean)
    2 ± 0 nats/token (n=4)
    """
    drawn = drawn_rows(meter, rows * steps, seed)
    sizes = meter.block_sizes[drawn]
    keys = step_keys(seed, steps)
    steps_of = sizes.view(steps, rows, -1)
    t = torch.cat([step_rates(method, sampler, *of, one_t=one_t) for of in zip(keys[1:], steps_of, strict=True)])
    before, hidden, heavy = meter.forwards, 0.0, False
    given = given_hidden(method)
    drawing = replace(method, masker=SomeMasked()) if given else method
    losses = meter.block_losses(drawn, t, drawing, keys[0], sampler)
    if given:
        chance = chance_of_some(t, sizes, meter.objective)
        hidden = (chance * (1 - chance) * losses**2).sum(1).view(steps, rows)
        losses = chance * losses
    total = losses.sum(1)
    if not given and method.masker.independent:
        heavy = rare(method, sampler) > HEAVY_SHARE * float(total.var())
    share = meter.shares(method)[drawn].view(steps, rows) if meter.objective.normalization != "row" else None
    return MeasuredBlocks(
        total.view(steps, rows), method.source.independent, (meter.forwards - before) / len(drawn), share,
        hidden=hidden, heavy_tail=heavy,
    )  # fmt: skip
