"""The variance of a training step's gradient as predicted from profiles of inner products, for any source and density.

Legend: a rows, b cells, n points of a row, k places of a sketch, Q blocks of coordinates, F forwards of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stabledllm.gradient.components import UNIT, PairMean, as_positive, ratio_of, row_mean_square
from stabledllm.gradient.counts import counts_of
from stabledllm.gradient.profile import GradientProfile
from stabledllm.gradient.projected import estimate
from stabledllm.gradient.row_moments import bernoulli_moments, direct_moments
from stabledllm.gradient.sketch import by_block
from stabledllm.gradient.staircase import Curves
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.maskers import Bernoulli, FixedCount
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import MASKER, STANDARD, VIEWS
from stabledllm.noise.windows import CHOSEN
from stabledllm.ppots.crossfit import CrossFit
from stabledllm.ppots.shared_noise import shared_forms
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ratio, of_estimated_ratio


def profile_method(method: Method) -> Method | None:
    """The method whose profile predicts a method: that of fixed counts for all single Bernoulli and counted masks.

    None where no profile predicts it: a biased masker, density or maskable set has another objective. Where the model
    chooses the tokens that are masked, counts do not decide their law, and Standard's own masks stand for all single
    Bernoulli masks (``gradient/paired.py``).

    >>> [profile_method(Method.parse(name)).name for name in ("strats+multisample2", "ppots+mirror")]
    ['fixedcount', 'mirror']
    """
    if not method.unbiased:
        return None
    if method.views.independent and isinstance(method.masker, Bernoulli):
        name = STANDARD if method.objective.tokens in CHOSEN else "fixedcount"
        return Method.parse(name, method.options, method.objective)
    deciding = [named.text for named in method.parts if {MASKER, VIEWS} & set(named.part.fills)]
    return Method.parse("+".join(deciding) or STANDARD, method.options, method.objective)


@dataclass(frozen=True)
class StepNoise:
    """A method's predicted n tr Var(step gradient), as a function of the rows to use, by block of coordinates.

    >>> noise = StepNoise(Method(), cost=1.0, rows=4, per_row=lambda keep: torch.tensor([2.0]))
    >>> noise.estimate().value
    2.0
    """

    method: Method
    cost: float
    """Forwards per row."""
    rows: int
    per_row: Callable[[Tensor], Tensor]
    """Takes the rows to use (all, or all but one), gives shape (Q,)."""

    def estimate(self) -> Estimate:
        """n tr Var(step gradient), with the error of the rows, by the jackknife, and of the projection."""
        return as_positive(estimate(lambda keep: [self.per_row(keep)], self.rows, UNIT))


def step_noise(
    profile: GradientProfile,
    method: Method,
    crossfit: CrossFit,
    step_rows: int,
    cost: float,
    plain: GradientProfile | None = None,
    second_moment: Callable[[TSampler], Tensor] | None = None,
) -> StepNoise:
    """Predicted noise of a step of ``step_rows`` iid rows.

    It is ``E|g|² - |E g|²``, less the part of the noise shared by all rows that the source of u removes: a quadratic
    form in the rows' mean gradient over t, from pairs of different rows. This last part takes the mean gradient to be
    linear from cell to cell, and with counts to be constant on each step of a row's own (``gradient/staircase.py``).

    Args:
        profile: of the :func:`profile_method` of this method.
        crossfit: densities, each with the rows it is applied to.
        plain: the profile of single fixed counts on the same rows. Where each view alone has the law of a single
            masker, only products of views are then taken from ``profile``: the squares of single views, which have the
            heavy tail, are known far better from fixed counts.
        second_moment: E|g|² of each row under a density, (Q, a), where it does not follow from the profile's points.

    >>> from stabledllm.gradient.example import example_profile
    >>> profile = example_profile()
    >>> noise = step_noise(profile, Method(), uniform_for(profile), step_rows=8, cost=1.0)
    >>> from stabledllm.gradient.components import decompose_gradient
    >>> abs(noise.estimate().value - decompose_gradient(profile).total.value) < 1e-9  # iid t: A + B + C
    True
    """
    second = torch.full(profile.gram.shape[:2], torch.nan, dtype=torch.float64)
    bernoulli = isinstance(method.masker, Bernoulli) and profile.of_counts
    apart = plain is not None and profile.lone is not None and _marginals_are_single(method)
    for sampler, rows in crossfit:
        if second_moment:
            square = second_moment(sampler)
        elif bernoulli:
            square = bernoulli_moments(profile, sampler, method.views.count).second
        elif apart:
            square = _from_products(profile, plain, method, sampler)
        else:
            square = direct_moments(profile, sampler).second
        second[:, rows] = square[:, rows]
    pairs = PairMean(plain if apart else profile)
    removed = [(_removed(profile, method, sampler, step_rows, bernoulli), len(rows)) for sampler, rows in crossfit]

    def per_row(keep: Tensor) -> Tensor:
        shared = sum(form(keep) * rows for form, rows in removed) / sum(rows for _, rows in removed)
        return second[:, keep].mean(1) - pairs(keep) - shared + pairs.spread_change(keep)

    return StepNoise(method, cost, len(profile.rows), per_row)


def _marginals_are_single(method: Method) -> bool:
    """Whether each view, by itself, has the law of the same masker's single view."""
    coupled = not method.views.independent and not method.views.switches
    return coupled and isinstance(method.masker, Bernoulli | FixedCount)


def _from_products(profile: GradientProfile, plain: GradientProfile, method: Method, sampler: TSampler) -> Tensor:
    """E|g|² of the mean of K views, (1, a): 1/K of that of a single view, from fixed counts, plus products of views."""
    bernoulli = isinstance(method.masker, Bernoulli)
    alone = bernoulli_moments(plain, sampler, 1) if bernoulli else direct_moments(plain, sampler)
    products = replace(profile, gram=torch.diag_embed(profile.squares() - profile.lone))
    return alone.second / method.views.count + direct_moments(products, sampler).second


def data_noise(profile: GradientProfile) -> Callable[[Tensor], Tensor]:
    """C of the gradient, as a function of the rows to use.

    >>> from stabledllm.gradient.example import example_profile
    >>> profile = example_profile()
    >>> from stabledllm.gradient.components import decompose_gradient
    >>> abs(float(data_noise(profile)(torch.arange(4))) - decompose_gradient(profile).data.value) < 1e-9
    True
    """
    own, pairs = row_mean_square(profile), PairMean(profile)
    return lambda keep: own[:, keep].mean(1) - pairs(keep) + pairs.spread_change(keep)


def at_equal_compute(noise: StepNoise, data: Callable[[Tensor], Tensor]) -> Estimate:
    """Noise at equal compute, ``F Var(step of F forwards) - C``; for Standard it is A + B.

    >>> from stabledllm.gradient.example import example_profile
    >>> profile = example_profile()
    >>> noise = step_noise(profile, Method(), uniform_for(profile), step_rows=8, cost=1.0)
    >>> from stabledllm.gradient.components import decompose_gradient
    >>> abs(at_equal_compute(noise, data_noise(profile)).value - decompose_gradient(profile).mask.value) < 1e-9
    True
    """
    return as_positive(
        estimate(lambda keep: [noise.per_row(keep), data(keep)], noise.rows, UNIT, lambda own, c: noise.cost * own - c)
    )


def ratio_to(noise: StepNoise, standard: StepNoise, data: Callable[[Tensor], Tensor]) -> Ratio:
    """Noise at equal compute over Standard's, with a 95 % interval by a joint jackknife over the rows of both.

    >>> from stabledllm.gradient.example import example_profile
    >>> profile = example_profile()
    >>> noise = step_noise(profile, Method(), uniform_for(profile), step_rows=8, cost=1.0)
    >>> ratio_to(noise, noise, data_noise(profile)).value
    1.0
    """

    def ratio(own: float, plain: float, c: float) -> float:
        return ratio_of(noise.cost * own - c, standard.cost * plain - c)

    estimated = estimate(
        lambda keep: [noise.per_row(keep), standard.per_row(keep), data(keep)],
        min(noise.rows, standard.rows),
        "",
        ratio,
    )
    return of_estimated_ratio(estimated)


def _removed(
    profile: GradientProfile, method: Method, sampler: TSampler, step_rows: int, bernoulli: bool
) -> Callable[[Tensor], Tensor]:
    """The noise that the source removes, as a function of the rows to use, by block of the projection."""
    if method.source.independent:
        return lambda keep: torch.zeros(1, dtype=torch.float64)
    curves = Curves(profile, sampler, stepped=profile.method.masker.counted and not bernoulli)
    _, form = shared_forms(curves, sampler, method.source, step_rows, weighted=True)
    form, group = form.view(len(curves.sizes), curves.cells, len(curves.sizes), curves.cells), curves.group
    cells = torch.stack(
        [
            (_means_of_counts(profile, i) if bernoulli else curves.in_cells(i)) @ profile.sketch[i].double()
            for i in range(len(profile.rows))
        ]
    )
    whole, own, with_all = [], [], []
    for part in by_block(cells):
        summed = part.new_zeros(len(curves.sizes), *part.shape[1:]).index_add_(0, group, part)
        formed = torch.einsum("sbtc,tck->sbk", form, summed)
        whole.append((summed * formed).sum())
        with_all.append((part * formed[group]).sum((1, 2)))
        own.append(torch.stack([(form[s, :, s] * (x @ x.T)).sum() for s, x in zip(group.tolist(), part, strict=True)]))
    whole, own, with_all = (torch.stack(each) for each in (whole, own, with_all))

    def value(keep: Tensor) -> Tensor:
        left_out = torch.ones(len(profile.rows), dtype=torch.bool)
        left_out[keep] = False  # one row at most
        square = whole - 2 * with_all[:, left_out].sum(1) + own[:, left_out].sum(1)
        return (square - own[:, keep].sum(1)) / (len(keep) * (len(keep) - 1))

    return value


def _means_of_counts(profile: GradientProfile, i: int) -> Tensor:
    """Weights of row i's points, of fixed counts, in the mean gradient of Bernoulli masks over each cell, (b, n)."""
    b = len(profile.width)
    found = counts_of(profile, i)
    weights = found.weights
    cell = (torch.searchsorted(profile.edges, weights.t) - 1).clamp(0, b - 1)
    mean = torch.zeros(b, len(found.index), dtype=torch.float64)
    mean.index_add_(0, cell, (weights.mean[found.index] * weights.step).T)
    return mean * found.scale * found.share * profile.point_width / profile.width[:, None]


def uniform_for(profile: GradientProfile, sampler: TSampler | None = None) -> CrossFit:
    """One density for every row, uniform unless given, as pairs of a density and rows.

    >>> from stabledllm.gradient.example import example_profile
    >>> uniform_for(example_profile())
    [(Uniform(), tensor([0, 1, 2, 3]))]
    """
    return [(sampler or Uniform(), torch.arange(len(profile.rows)))]
