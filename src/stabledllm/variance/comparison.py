"""Methods side by side, at equal compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from stabledllm.ppots.profile import Profile
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ends, Ratio, of_ratio, of_sum, scaled, with_ends
from stabledllm.stats.jackknife import jackknife
from stabledllm.variance.components import UNIT, Decomposition, NestedLosses, components
from stabledllm.variance.drawn import Measured, variance_covariance
from stabledllm.variance.predicted import at_equal_compute


@dataclass(frozen=True)
class MethodResult:
    """The measured and the predicted variance of one method.

    >>> import torch
    >>> drawn = Measured(torch.tensor([[1.0, 3.0], [3.0, 1.0]]), independent_rows=True, cost=1.0)
    >>> MethodResult("standard", unbiased=True, measured=drawn, predicted=None, cost=1.0).measured.mean.value
    2.0
    """

    method: str
    unbiased: bool
    measured: Measured
    predicted: Estimate | None
    """Predicted n Var(step loss), where it was predicted."""
    cost: float
    """Forwards per row."""


def compare_methods(results: list[MethodResult], data_noise: Estimate) -> list[dict]:
    """The ``methods`` of ``decomposition.json``: variances, noise at equal compute, and its ratio to Standard's.

    ``pays`` is claimed only where measured and predicted variances agree, the method's and Standard's.

    Args:
        results: the first must be ``standard``.
        data_noise: C of Standard.

    >>> import torch
    >>> drawn = Measured(torch.tensor([[1.0, 3.0], [3.0, 1.0]]), independent_rows=True, cost=1.0)
    >>> standard = MethodResult("standard", unbiased=True, measured=drawn, predicted=None, cost=1.0)
    >>> (row,) = compare_methods([standard], Estimate(value=1 / 3, stderr=0.0, n=4))
    >>> round(row["variance_at_equal_compute"]["value"], 6), row["relative_to_standard"]["value"]  # 4 / 3 - 1 / 3
    (1.0, 1.0)
    """
    return [_row(r, results[0], data_noise) for r in results]


def _row(result: MethodResult, standard: MethodResult, data_noise: Estimate) -> dict:
    measured = result.measured.per_row_variance
    noise = at_equal_compute(measured, result.cost, data_noise)
    predicted = at_equal_compute(result.predicted, result.cost, data_noise) if result.predicted else None
    is_standard = result.method == "standard"
    agrees = _agrees(result)
    ratio = Ratio(1.0, 1.0, 1.0) if is_standard else _ratio(result, standard, data_noise)
    return {
        "method": result.method,
        "views": result.cost,
        "unbiased": result.unbiased,
        "mean": result.measured.mean.as_dict(),
        "predicted_variance": result.predicted.as_dict() if result.predicted else None,
        "measured_variance": measured.as_dict(),
        "heavy_tail": result.measured.heavy_tail,
        "variance_at_equal_compute": noise.as_dict(),
        "predicted_at_equal_compute": predicted.as_dict() if predicted else None,
        "relative_to_standard": ratio.as_dict(),
        "agrees_with_prediction": agrees,
        "pays": None if agrees is False or _agrees(standard) is False else ratio.below_one,
    }


def _agrees(result: MethodResult) -> bool | None:
    """Whether the measured and the predicted variance may be the same number; None where either has no interval."""
    return None if result.predicted is None else may_be_equal(result.measured.per_row_variance, result.predicted)


def may_be_equal(one: Estimate, other: Estimate) -> bool | None:
    """Whether two independent estimates may be of the same number; None where either has no interval.

    >>> may_be_equal(Estimate(value=1.0, stderr=0.1, n=50), Estimate(value=1.2, stderr=0.1, n=50))
    True
    """
    low, high = of_sum([with_ends(one), scaled(with_ends(other), -1.0)])
    return None if math.isnan(low + high) else low <= 0 <= high


def _ratio(result: MethodResult, standard: MethodResult, data_noise: Estimate) -> Ratio:
    """The ratio of a method's noise at equal compute to Standard's, whose draws are shared, with a 95 % interval."""
    top, bottom = ((r.cost, r.measured.per_row_variance) for r in (result, standard))
    one, other = (scaled(with_ends(v), cost) for cost, v in (top, bottom))
    covariance = variance_covariance(result.measured, standard.measured)
    shared = covariance / (top[1].stderr * bottom[1].stderr) if covariance else 0.0
    return ratio_at_equal_compute(one, other, shared, with_ends(data_noise))


def ratio_at_equal_compute(
    one: tuple[float, Ends],
    other: tuple[float, Ends],
    correlation: float,
    data: tuple[float, Ends],
    known: Callable[[float], tuple[float, Ends]] | None = None,
) -> Ratio:
    """The ratio ``(one - C) / (other - C)`` of two methods' noise at equal compute, with its 95 % interval.

    ``top - r bottom`` is ``one - r other - (1 - r) C``: both hold the same estimate of C, which cancels at r = 1.

    Args:
        one: measured variance of the method times its cost, with the ends of its interval. other: Standard's.
        correlation: of the errors of ``one`` and ``other``, which share their draws.
        data: C with its ends.
        known: what each variance has beside what was drawn, as ``top - r bottom`` for a given r, with its ends.

    >>> ratio = ratio_at_equal_compute((3.0, (2.5, 3.5)), (5.0, (4.5, 5.5)), 0.0, (1.0, (0.9, 1.1)))
    >>> ratio.value, ratio.ci_low < 0.5 < ratio.ci_high
    (0.5, True)
    """
    nothing = 0.0, (0.0, 0.0)
    of_known = known or (lambda r: nothing)
    top, bottom = (one[0] + of_known(0.0)[0], other[0] + of_known(0.0)[0] - of_known(1.0)[0])
    level, ends = bottom - data[0], of_sum([other, scaled(data, -1.0)])
    if known:
        # Of Standard alone: what is known of it at r, less what is known of the method.
        ends = ends[0] + bottom - other[0], ends[1] + bottom - other[0]
    value = (top - data[0]) / level if level > 0 else math.nan
    if not ends[0] > 0:  # Standard's noise may be 0: it is no measure of another's
        value = math.nan
    _, of_data = scaled(data, -(1 - value))  # the part of C in the interval is taken at the estimate
    half = [abs(end + (1 - value) * data[0]) for end in of_data]

    def difference(r: float) -> Ends:
        centre = -(1 - r) * data[0]
        rest = centre, (centre - half[0], centre + half[1])
        if known:
            parts = [rest, known(r)]
            rest = sum(part for part, _ in parts), of_sum(parts)
        return _of_difference(one, scaled(other, -r), min(max(correlation, -1.0), 1.0), rest)

    return of_ratio(value, difference)


def _of_difference(
    one: tuple[float, Ends], less: tuple[float, Ends], correlation: float, rest: tuple[float, Ends]
) -> Ends:
    """Interval of ``one + less + rest``, where ``-less`` is correlated with ``one``, and ``rest`` is independent."""
    out = []
    for side, sign in ((0, -1), (1, 1)):
        a, b, c = (abs(ends[side] - value) for value, ends in (one, less, rest))
        out.append(sign * max(a**2 + b**2 - 2 * correlation * a * b + c**2, 0.0) ** 0.5)
    total = one[0] + less[0] + rest[0]
    return total + out[0], total + out[1]


_SOME = "with a second view for some t only"
_SHARED = "whose views share the forward that chooses their tokens, which Standard pays too,"


def mirror_condition(
    views: Profile,
    cost: float,
    nested: NestedLosses,
    parts: Decomposition,
    measured: dict | None = None,
    *,
    shared: bool = False,
) -> dict:
    """Whether MIRROR beats more rows of one view at equal compute and uniform t, with the figures that decide it.

    At c forwards a row MIRROR leaves A' of A, and ``c (A' + B + C) - C < A + B`` where ``A - c A' > (c - 1) (B + C)``:
    with two views of every row, c = 2 and A' = A (1 + rho) / 2, this is ``|rho| A > B + C``.

    Args:
        views: the probe of MIRROR's two views.
        cost: forwards that a row pays on average at uniform t, over those that Standard pays.
        nested: the nested design's losses.
        parts: their decomposition.
        measured: the entry of MIRROR among the compared methods, where it is one of them. Where only some t have a
            second view, or the views share a forward, the sentence follows the ratio in that entry.
        shared: whether the views share a forward that chooses their tokens.

    >>> import torch
    >>> from stabledllm.variance.components import decompose
    >>> losses = torch.tensor([[1.0, 3.0], [3.0, 1.0]]).expand(4, 1, 2, 2).double()  # two views of opposite noise
    >>> probed = Profile(edges=torch.tensor([0.0, 1.0]).double(), view_losses=losses, cost=torch.full((1,), 2.0),
    ...                  used=torch.ones(4, 1, 2, dtype=torch.bool), rows=torch.arange(4))
    >>> nested = NestedLosses(losses[..., 0], torch.arange(4), width=torch.ones(1).double())
    >>> mirror_condition(probed, 2.0, nested, decompose(nested))["rho"]
    -1.0
    """
    gain = _mean_over_rows((views.view_noise() - cost * views.moments.noise) @ views.width)
    rho = _mean_over_rows(-views.view_covariance().nan_to_num() @ views.width)
    rest = jackknife(lambda keep: float(sum(components(nested.select(keep))[1:])), len(nested.losses), UNIT)
    rest = replace(rest, ends=of_sum([with_ends(parts.mask_rate), with_ends(parts.data)]))
    low, high = of_sum([with_ends(gain), scaled(with_ends(rest), 1 - cost)])
    pays = True if low > 0 else False if high < 0 else None
    how = _SHARED if shared else _SOME
    sentence, unclear = _condition(cost, how, gain, rest), "too close to tell"
    if cost != 2 and measured:
        ratio = Ratio(**measured["relative_to_standard"])
        pays, sentence = measured["pays"], _measured(cost, how, ratio)
        unclear = unclear if ratio.below_one is None else "but measured and predicted variances disagree"
    verdict = {True: "so it pays", False: "so it does not", None: unclear}[pays]
    return {
        "rho": rho.value / -parts.mask_pattern.value if parts.mask_pattern.value else math.nan,
        "rho_A": rho.as_dict(),
        "B_plus_C": rest.as_dict(),
        "cost": cost,
        "pays": pays,
        "sentence": f"{sentence}, {verdict}.",
    }


def _condition(cost: float, how: str, gain: Estimate, rest: Estimate) -> str:
    """The condition in words, with the values of its two sides."""
    if cost == 2:
        return (
            f"At uniform t, MIRROR beats twice the rows at equal compute only if |rho| A > B + C: here |rho| A "
            f"{_compared(gain)} and B + C {_compared(rest)} nats²"
        )
    more = cost - 1
    return (
        f"At uniform t, MIRROR {how}, {cost:.3g} forwards a row, beats {cost:.3g} times "
        f"the rows only if A - {cost:.3g} A' > {more:.3g} (B + C), A' the mask-pattern noise that it leaves: here "
        f"{_text(gain)} and {_text(rest, more)} nats²"
    )


def _compared(estimate: Estimate) -> str:
    """An estimate of what cannot be negative in words: ``= 3 ± 1``; ``below 2`` or ``= 0`` where it is not above 0."""
    high = estimate.interval()[1]
    if estimate.value > 0:
        return f"= {_text(estimate)}"
    return f"below {float(f'{high:.2g}'):g}" if high > 0 else "= 0"


def _text(estimate: Estimate, by: float = 1.0) -> str:
    """A multiple of an estimate with its error, where there is one."""
    known = math.isfinite(estimate.stderr + sum(estimate.interval()))
    error = f" ± {float(f'{by * estimate.stderr:.2g}'):g}" if known else ""
    return f"{by * estimate.value:.3g}{error}"


def _measured(cost: float, how: str, ratio: Ratio) -> str:
    """The measured ratio in words, with the figures that are printed beside the method."""
    if not ratio.is_known:
        return (
            f"MIRROR {how} costs {cost:.3g} forwards a row; these draws give its ratio to Standard's noise no interval"
        )
    return (
        f"MIRROR {how} costs {cost:.3g} forwards a row; its noise at equal compute is "
        f"{ratio.value:.2g} ({ratio.ci_low:.2g} to {ratio.ci_high:.2g}) of Standard's"
    )


def _mean_over_rows(each: Tensor) -> Estimate:
    return Estimate(value=float(each.mean()), stderr=float(each.std()) / len(each) ** 0.5, n=len(each), unit=UNIT)
