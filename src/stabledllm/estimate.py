"""A number never leaves this library without its error."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated number with its standard error, the number of independent units, and its unit.

    ``stderr`` is NaN where ``n`` is too small to say (fewer than 2 units); in JSON that is null.
    """

    value: float
    stderr: float
    n: int
    unit: str = ""

    def as_dict(self) -> dict:
        """The JSON form ``{"value", "stderr", "n", "unit"}``; NaN becomes null."""
        out = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in out.items()}

    def interval(self, z: float = 1.959963984540054) -> tuple[float, float]:
        """Normal interval, 95 % by default."""
        return self.value - z * self.stderr, self.value + z * self.stderr

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.value:.4g} ± {self.stderr:.2g}{unit} (n={self.n})"
