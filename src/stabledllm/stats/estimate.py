"""The type of every estimated number: a value with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated number with its standard error, the number ``n`` of independent observations, and its unit.

    ``stderr`` is NaN where no error can be given: fewer than 2 observations, or a tail too heavy for so many draws. In
    JSON NaN is null.

    >>> print(Estimate(value=0.4881, stderr=0.0182, n=400, unit="nats²"))
    0.4881 ± 0.018 nats² (n=400)
    """

    value: float
    stderr: float
    n: int
    unit: str = ""
    freedom: float | None = None
    """Degrees of freedom of ``stderr``; None means n - 1."""
    ends: tuple[float, float] | None = None
    """A 95 % interval of another form, such as chi-square's for a variance; None means Student's."""

    def as_dict(self) -> dict:
        """The JSON form, ``{"value", "stderr", "n", "unit"}`` with NaN as null.

        ``ci_low`` and ``ci_high`` are added where the 95 % interval is not ``value ± 1.96 stderr``; where it is unknown
        ``stderr`` is so too, as a reader would make an interval of it.
        """
        known = not math.isnan(sum(ends := self.interval()))
        out = {"value": self.value, "stderr": self.stderr if known else math.nan, "n": self.n, "unit": self.unit}
        if known and not all(abs(abs(end - self.value) / 1.96 - self.stderr) <= 0.02 * self.stderr for end in ends):
            out |= {"ci_low": ends[0], "ci_high": ends[1]}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in out.items()}

    def interval(self) -> tuple[float, float]:
        """The 95 % interval: ``ends`` where they are given, else Student's; NaN where there is no error."""
        if self.ends is not None:
            return self.ends
        if not math.isfinite(self.stderr):
            return math.nan, math.nan
        half = student(self.n - 1 if self.freedom is None else self.freedom) * self.stderr
        return self.value - half, self.value + half

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        error = f" ± {float(f'{self.stderr:.2g}'):g}" if math.isfinite(self.stderr + sum(self.interval())) else ""
        return f"{self.value:.4g}{error}{unit} (n={self.n})"


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t: half the width of a 95 % interval, in standard errors.

    >>> round(student(9), 3)
    2.262
    """
    from scipy import special  # here, as importing the package loads torch only

    return float(special.stdtrit(freedom, 0.975)) if freedom > 0 else math.inf
