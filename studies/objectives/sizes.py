"""How much the study does: in all, and in a rehearsal of seconds a run."""

from __future__ import annotations

from dataclasses import dataclass

REHEARSAL = ("base.epochs=0.5", "base.data.train_rows=64", "base.data.validation_rows=8")


@dataclass(frozen=True)
class Size:
    """How much the study does.

    Args:
        rates: learning rates that every row is tuned with, on ``tuning`` seeds that are not reported.
        seeds: of every row. multiples: of Standard's forwards, for the curve that compute saved is read off.
        rows: test rows, whose likelihood under the decoder is taken too.
        lows: the lowest mask ratio of windows up to 1, for the first ``few`` seeds.
        more: overrides of every recipe. grid: of that of the part on stability.
        real: seeds of the part real; real_more: its overrides; real_rows, real_multiples: the rows that it trains, and
            the multiples of Standard's forwards for its curve.
    """

    rates: tuple[str, ...] = ("1e-3", "2e-3", "4e-3")
    tuning: tuple[int, ...] = (101,)
    seeds: tuple[int, ...] = tuple(range(1, 13))
    multiples: tuple[float, ...] = (0.75, 1.25, 1.5, 2)
    rows: int = 96
    lows: tuple[float, ...] = (0.25, 0.7, 0.85)
    few: int = 8
    more: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    real: tuple[int, ...] = (1, 2, 3)
    real_more: tuple[str, ...] = ()
    real_rows: tuple[str, ...] = ("standard", "lowdisc+fixedcount", "window-generation", "masked-mean")
    real_multiples: tuple[float, ...] = (0.5, 1.5)


FULL = Size()
SMALL = Size(
    rates=("1e-3", "2e-3"), seeds=(1, 2), tuning=(101,), multiples=(2,), rows=4, lows=(0.7,), few=2, more=REHEARSAL,
    grid=("learning_rates=[1e-3,4e-3]", "max_grad_norms=[1]", "seeds=[1,2]"),
    real=(1, 2), real_more=("base.steps=2", "base.data.validation_rows=2"), real_multiples=(2,),
)  # fmt: skip
