"""How much is drawn for each measurement, in plain objects that check themselves.

Names, defaults and bounds are those of ``config/settings``, which the command line reads: a test holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal

from stabledllm.errors import UserError, did_you_mean

MOST = 1_000_000
"""Largest number of rows, steps, draws and the like; a larger one can only be a slip of the pen."""


def whole(default: int, least: int, most: int = MOST) -> Any:
    """A field that takes whole numbers from ``least`` to ``most``."""
    return field(default=default, metadata={"check": lambda name, value: check_whole(name, value, least, most)})


def none_or(default: int, least: int) -> Any:
    """A field that takes 0, for nothing, or whole numbers from ``least``."""
    return field(
        default=default,
        metadata={"check": lambda name, value: check_whole(name, value, least if value else 0)},
    )


def real(default: float, low: float, high: float, what: str) -> Any:
    """A field that takes numbers from ``low`` to ``high``, described by ``what``."""
    return field(default=default, metadata={"check": lambda name, value: _check_real(name, value, low, high, what)})


def one_of(default: str, *others: str) -> Any:
    """A field that takes one of some words."""
    return field(default=default, metadata={"check": lambda name, value: _check_word(name, value, (default, *others))})


def check_whole(name: str, value: object, least: int, most: int = MOST) -> None:
    """Refuse a value that is no whole number from ``least`` to ``most``.

    Raises:
        UserError: naming it.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name}: expected a whole number from {least} to {most}, found {value!r}.")


def _check_real(name: str, value: object, low: float, high: float, what: str) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name}: expected a number {what}, found {value!r}.")


def _check_word(name: str, value: object, words: Sequence[str]) -> None:
    if value not in words:
        raise UserError(f"{name}: expected one of {', '.join(words)}, found {value!r}.")


class _Checked:
    """Options whose fields are checked when they are made."""

    _prefix = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            if check := one.metadata.get("check"):
                check(self._prefix + one.name, getattr(self, one.name))


def refuse_unknown(kind: type, given: Sequence[str], where: str) -> None:
    """Refuse options that a kind of options does not have.

    Raises:
        UserError: naming the first, with the nearest that there is.

    >>> refuse_unknown(ProbeOptions, ["row"], "fit")
    Traceback (most recent call last):
    stabledllm.errors.UserError: fit: unknown option 'row' (did you mean 'rows'?).
    """
    known = [one.name for one in fields(kind)]
    for name in given:
        if name not in known:
            raise UserError(f"{where}: unknown option '{name}'{did_you_mean(name, known)}.")


@dataclass(frozen=True)
class ProbeOptions(_Checked):
    """The probe and the fit of p(t).

    >>> ProbeOptions(rates=2)
    Traceback (most recent call last):
    stabledllm.errors.UserError: rates: expected a whole number from 4 to 1000000, found 2.
    """

    design: Literal["grid", "stratified"] = one_of("stratified", "grid")
    """``stratified``: each row at mask ratios of its own, one per cell of t; ``grid``: all rows at the midpoints."""
    rows: int = whole(112, 2)
    rates: int = whole(8, 4)
    """Equal cells of t; the lowest is split further."""
    masks: int = whole(2, 2)
    """Masks per row and cell."""
    starts: int = whole(20, 1)
    """Starting points of the fit of the EPR curve."""
    family: Literal["epr", "tabulated"] = one_of("epr", "tabulated")
    uniform_share: float = real(0.05, 0, 1, "from 0 to 1")
    """Defensive mixture: bounds every weight by 1 / uniform_share."""
    check_proxy: bool = False
    """For ``ppots-head``: measure the whole gradient as well, and record how well the output layer stands for it."""


DECOMPOSE_PROBE = ProbeOptions(rows=24, rates=16, masks=3)
"""The probe of a decomposition, behind its curves over t and the predicted variances."""


@dataclass(frozen=True)
class GradientOptions(_Checked):
    """How the noise of the gradient is measured.

    >>> GradientOptions().rows
    384
    """

    _prefix = "grad."

    rows: int = whole(384, 4)
    """Rows that A, B, C and every single-view method are measured on; in blocks, single blocks for A and B."""
    view_rows: int = whole(16, 4)
    """Rows that each method of several views, or with a masker of its own, is measured on; in blocks none, as there all
    are measured on drawn steps. Under ``lift`` and ``gift`` of several views only, unless they are independent
    masks."""
    rates: int = whole(4, 2)
    """Equal cells of t; the lowest is split further."""
    masks: int = whole(2, 2)
    """Masks per row and cell; up to three times as many where t is small. Under ``lift`` and ``gift`` those of methods
    with a masker or views of their own; Standard's own are four."""
    split_rows: int = none_or(24, 4)
    """Rows, the first of ``rows``, on which A is split into how many tokens are masked, which are targets and which
    context they see; 0: none, as in blocks and under ``lift`` and ``gift``."""
    steps: int = whole(16, 4)
    """Training steps drawn for each method."""
    clip: float = real(1.0, 5e-324, math.inf, "above 0")
    """Norm to which the optimizer's gradients are clipped."""
    parameters: Sequence[str] | None = None
    """Patterns of the parameters whose gradient is measured; None takes all that are trained."""
    projection: Literal["auto", "exact", "sketch"] = one_of("auto", "exact", "sketch")
    """``exact``: whole gradients; ``sketch``: a seeded random projection; ``auto``: projected where they do not fit."""


@dataclass(frozen=True)
class DecomposeOptions(_Checked):
    """How much is drawn for each part of a decomposition.

    >>> DecomposeOptions(rows=1)
    Traceback (most recent call last):
    stabledllm.errors.UserError: rows: expected a whole number from 2 to 1000000, found 1.
    """

    rows: int = whole(48, 2)
    """Rows of the nested design."""
    rates: int = whole(12, 2)
    """Mask ratios per row of the nested design."""
    masks: int = whole(3, 2)
    """Masks per mask ratio of the nested design."""
    design: Literal["cells", "iid"] = one_of("cells", "iid")
    """``cells``: one ratio in each cell of t, which tames the tail near t = 0; ``iid``: the plain nested design."""
    probe: ProbeOptions = DECOMPOSE_PROBE
    forwards: int = whole(32, 2)
    """Forward passes of a training step; the same number for every method."""
    steps: int = whole(48, 4)
    """Training steps drawn to measure each method's variance."""
    grad: GradientOptions = GradientOptions()
    seed: int = whole(0, 0, 2**32 - 1)
    """Seed of everything that is drawn."""


DEFAULT_METHODS = (
    "standard",
    "ppots",
    "mirror",
    "ppots+mirror",
    "multisample",
    "strats",
    "fixedcount",
    "lowdisc+fixedcount",
    "lowdisc+ppots+fixedcount",
    "lowdisc+ppots-head+fixedcount",
    "lowdisc+complement",
    "clipped",
)
"""The methods that are compared where none are named."""
