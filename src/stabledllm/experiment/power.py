"""How many seeds show a difference: the power of the paired t test over seeds, from the noncentral t.

All values are taken to be normal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import stdev

from scipy import special  # scipy.stats would take a second to import

from stabledllm.errors import UserError
from stabledllm.experiment.spread import paired_differences, sd_interval

ALPHA, POWER = 0.05, 0.8
MOST = 100_000
"""Largest number of seeds that is searched."""
_TOO_MANY = "over 100,000"


def sd_of_differences(sd: float, correlation: float = 0.0) -> float:
    """The sd of the difference of two methods under the same seed, where each has the given sd."""
    return sd * math.sqrt(2 * (1 - correlation))


def power(difference: float, sd: float, seeds: int, *, alpha: float = ALPHA) -> float:
    """The probability that a two-sided paired t test at level ``alpha`` finds a true difference of means.

    Args:
        sd: of the paired differences, in the unit of ``difference``. seeds: at least 2.
    """
    if sd == 0:
        return float(difference != 0)
    freedom, shift = seeds - 1, abs(difference) / sd * math.sqrt(seeds)
    edge = float(special.stdtrit(freedom, 1 - alpha / 2))
    missed, other_side = (float(special.nctdtr(freedom, shift, x)) for x in (edge, -edge))
    # Far out, where the probability is below the smallest number, it is NaN.
    return 1 - (0.0 if math.isnan(missed) else missed) + (0.0 if math.isnan(other_side) else other_side)


def seeds_needed(difference: float, sd: float, *, wanted: float = POWER, methods: int = 1) -> int | None:
    """The least number of seeds with at least the ``wanted`` power; None beyond :data:`MOST`.

    Args:
        methods: number of methods compared with Standard at once, each at level ``ALPHA / methods``, Holm's strictest
            step.

    Raises:
        UserError: the difference is 0, or a value is out of range.
    """
    if not difference or not math.isfinite(difference) or not (sd >= 0 and math.isfinite(sd)):
        raise UserError(f"power: expected a difference other than 0 and an sd of at least 0, found {difference}, {sd}.")
    if not 0 < wanted < 1 or methods < 1:
        raise UserError("power: expected power inside (0, 1) and at least 1 method.")

    def enough(seeds: int) -> bool:
        return power(difference, sd, seeds, alpha=ALPHA / methods) >= wanted

    low, high = 1, 2
    while not enough(high):
        low, high = high, high * 2
        if low >= MOST:
            return None
    while high - low > 1:  # power grows with the number of seeds
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def seeds_from_runs(
    values: Mapping[int, float], standard: Mapping[int, float], difference: float, *, wanted: float, methods: int
) -> dict | None:
    """The seeds needed if differences vary as they do over the common seeds; None for fewer than 2 unlike ones.

    ``seeds_low`` and ``seeds_high`` follow from the 95 % interval of the sd, which is wide for few seeds.
    """
    differences = paired_differences(values, standard)
    if len(set(differences)) < 2:
        return None
    sd = stdev(differences)
    ends = zip(("seeds", "seeds_low", "seeds_high"), (sd, *sd_interval(differences)), strict=True)
    needed = {name: seeds_needed(difference, end, wanted=wanted, methods=methods) for name, end in ends}
    return needed | {"n": len(differences), "sd": sd}


def _check_asked(difference: float, wanted: float) -> None:
    if not difference or not math.isfinite(difference):
        raise UserError(f"power: expected a --difference other than 0, such as 0.01, found {difference:g}.")
    if not 0 < wanted < 1:
        raise UserError(f"power: expected --power between 0 and 1, such as 0.8, found {wanted:g}.")


def describe_seeds(difference: float, sd: float, correlation: float, *, wanted: float, methods: int) -> str:
    """A line on the seeds needed, given the sd of both methods and their correlation.

    Raises:
        UserError: the correlation is not in [-1, 1), the sd not above 0, or the same as for :func:`seeds_needed`.
    """
    _check_asked(difference, wanted)
    if not -1 <= correlation < 1:
        raise UserError(
            f"power: expected --correlation from -1 to below 1, where no spread would be left, found {correlation:g}."
        )
    if not (sd > 0 and math.isfinite(sd)):
        raise UserError(f"power: expected --sd above 0, such as 0.02, found {sd:g}.")
    spread = sd_of_differences(sd, correlation)
    seeds = seeds_needed(difference, spread, wanted=wanted, methods=methods)
    return f"{seeds or _TOO_MANY} seeds (differences of sd {spread:.3g}, {wanted:.0%} power, 5 % two-sided)"


def describe_seeds_by_method(
    values: Mapping[str, Mapping[int, float]], difference: float, *, wanted: float, methods: int | None
) -> Iterator[str]:
    """Yields a line for each method on the seeds that it needs to differ from Standard.

    Args:
        values: for each method, Standard included, its value by seed.
        methods: number of methods compared at once; without it all but Standard.

    Raises:
        UserError: the difference is 0, or the power is not between 0 and 1.
    """
    _check_asked(difference, wanted)
    count = methods or len(values) - 1
    for name, own in values.items():
        if name == "standard":
            continue
        if needed := seeds_from_runs(own, values["standard"], difference, wanted=wanted, methods=count):
            low, many, high = (needed[key] or _TOO_MANY for key in ("seeds_low", "seeds", "seeds_high"))
            yield (
                f"{name}: {many} seeds ({low} to {high}, as its sd {needed['sd']:.3g} is known from {needed['n']} "
                f"seeds only; {wanted:.0%} power, {count} method{'s' * (count > 1)} compared)"
            )
