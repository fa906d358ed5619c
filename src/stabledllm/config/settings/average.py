"""Averages of the weights over the steps of training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from stabledllm.config.twice import refuse_equal_numbers
from stabledllm.config.typed import Strict

WIDEST = 0.28
"""Largest width of a power-function average; the plain mean over all steps has 0.289."""
Width = Annotated[float, Field(gt=0, le=WIDEST)]


class AverageSettings(Strict):
    """Averages of the weights over the steps, kept beside the weights that are trained, which they do not change."""

    ema: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """Decays of exponential moving averages, such as ``[0.99]``: a step counts by ``decay`` to the power of the steps
    since."""
    tail: list[Annotated[float, Field(gt=0, le=1)]] = []
    """Shares of the steps, such as ``[0.25]``: the plain mean over so many of the last ones."""
    power: list[Width] = []
    """Widths of power-function averages, such as ``[0.05,0.1]``: the sd of the weights over the steps, as a share of
    all steps. From two of them ``stabledllm average`` rebuilds any other width."""
    snapshots: int = Field(1, ge=0, le=1000)
    """Snapshots of the power-function averages, evenly spaced, the last one at the end, from which others are rebuilt;
    0: none."""
    on_cpu: bool = False
    """Hold the averages in main memory instead of on the device."""

    @field_validator("ema", "tail", "power")
    @classmethod
    def _once(cls, values: list[float]) -> list[float]:
        return refuse_equal_numbers(values)

    @property
    def count(self) -> int:
        """The number of averages; 0 unless some are asked for."""
        return len(self.ema) + len(self.tail) + len(self.power)
