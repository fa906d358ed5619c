"""The table of the parts that a method can have, by their names in a method string.

A new part is a row of :data:`PARTS` and its class. Other code asks a method for what its parts need, not for their
names; only ``syrm`` and ``ema``, which act in the data and in the Trainer, are asked for by name.

This file loads no torch: a part's class is imported when the part is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations
from pkgutil import resolve_name

from stabledllm.errors import UserError, did_you_mean

SOURCE, DENSITY, MASKER, VIEWS = "source of u", "density of t", "masker", "views"
MASKABLE, REPORTED = "maskable set", "reported loss"
SLOTS = (SOURCE, DENSITY, MASKER, VIEWS, MASKABLE, REPORTED)
"""The choices that parts make, in the order of the parts in a method's name; at most one part per slot."""
STANDARD, AUTOREGRESSIVE = "standard", "autoregressive"
"""The method without parts and that of autoregressive models; neither combines with parts."""


@dataclass(frozen=True)
class MethodOptions:
    """The options of the parts; each has an effect only if its part is in the method.

    >>> MethodOptions(clip_low=0.2).clip_high
    0.8
    """

    strata: int | None = None
    clip_low: float = 0.3
    clip_high: float = 0.8
    isad_delta: float = 0.2
    mirror_below: float = 1.0
    ema_bins: int = 10


@dataclass(frozen=True, eq=False)
class Part:
    """One row of the table: a part, the slots that it fills and what it needs.

    >>> PARTS["isad"].marks, PARTS["isad"].unbiased
    ('delimiter', False)
    """

    name: str
    fills: Mapping[str, Callable[[MethodOptions, int], object] | None]
    """Its slots, each with a function from the options and the number of views to the object in the slot, or None."""
    options: tuple[str, ...] = ()
    """The options that it reads."""
    number: int = 0
    """The number of views where its name ends in no number; 0 if its name takes none; its views are then two."""
    fitted_to: str | None = None
    """The quantity whose second moment its density is fitted to before training."""
    tends_to: str | None = None
    """The part whose fitted density it follows during training."""
    marks: str | None = None
    """The marks that rows must have for it, as the name of a field of a row."""
    unbiased: bool = True
    """Whether the mean of the loss and of its gradient stay those of the standard objective."""
    bound_only: bool = False
    """Whether it is defined for the bound's masks only, and so not for the objective ``cosine``."""
    contradicts: Mapping[str, str] = field(default_factory=dict)
    """Parts of other slots that it cannot be combined with, and why."""


def _of(path: str, *names: str, **more: object) -> Callable[[MethodOptions, int], object]:
    """Builds a class of this package from the options of these names; ``views`` is the number of views."""
    return lambda options, views: resolve_name(f"stabledllm.noise.{path}")(
        *(views if name == "views" else getattr(options, name) for name in names), **more
    )


PARTS = {
    part.name: part
    for part in (
        Part(AUTOREGRESSIVE, {MASKER: _of("maskers.NextToken")}, bound_only=True),
        Part("strats", {SOURCE: _of("sources.Stratified", "strata")}, options=("strata",)),
        Part("lowdisc", {SOURCE: _of("sources.LowDiscrepancy")}),
        Part("ppots", {DENSITY: None}, fitted_to="loss"),
        Part("ppots-gradient", {DENSITY: None}, fitted_to="gradient", bound_only=True),
        Part("ppots-head", {DENSITY: None}, fitted_to="output layer", bound_only=True),
        Part("adaptive", {DENSITY: None}, tends_to="ppots"),
        Part(
            "clipped",
            {DENSITY: _of("densities.Clipped", "clip_low", "clip_high")},
            options=("clip_low", "clip_high"),
            unbiased=False,
            bound_only=True,
            contradicts={"complement": "the second view has 1 - t, outside the interval"},
        ),
        Part("fixedcount", {MASKER: _of("maskers.FixedCount")}),
        Part("complement", {MASKER: _of("maskers.Complement"), VIEWS: _of("views.ComplementPair")}, bound_only=True),
        Part(
            "isad",
            {MASKER: _of("maskers.ISAD", "isad_delta")},
            options=("isad_delta",),
            marks="delimiter",
            unbiased=False,
            bound_only=True,
        ),
        Part(
            "isad-exact",
            {MASKER: _of("maskers.ISAD", "isad_delta", exact=True)},
            options=("isad_delta",),
            marks="delimiter",
            bound_only=True,
        ),
        Part("mirror", {VIEWS: _of("views.Mirror", "mirror_below")}, options=("mirror_below",)),
        Part("multisample", {VIEWS: _of("views.MultiSample", "views")}, number=2),
        Part("partition", {VIEWS: _of("views.Partition", "views")}, number=3),
        Part("syrm", {MASKABLE: None}, marks="syntax", unbiased=False),
        Part("ema", {REPORTED: None}, options=("ema_bins",)),
    )
}
FOLLOWED = {part.name: part.tends_to for part in PARTS.values() if part.tends_to}
"""The densities that follow the losses during training, each with the fitted density that it tends to."""


@dataclass(frozen=True)
class Named:
    """A part as it is named in a method string.

    >>> Named("partition4", PARTS["partition"], views=4) == find_part("partition4")
    True
    """

    text: str
    """The name with its number, if any: ``partition4``."""
    part: Part
    views: int
    """The views of a row that it makes at most; 1 where it leaves them as they are."""


def find_part(text: str) -> Named | None:
    """The part of that name, for example ``partition`` or ``partition4``; None for an unknown name.

    >>> find_part("partition").views, find_part("mirror2")
    (3, None)
    """
    match = re.fullmatch(r"([a-z]+)(\d+)", text)
    if match and (part := PARTS.get(match[1])) and part.number:
        return Named(text, part, int(match[2]))
    return (part := PARTS.get(text)) and Named(text, part, part.number or 1 + (VIEWS in part.fills))


@lru_cache(maxsize=1024)
def read_parts(text: str) -> tuple[Named, ...]:
    """The parts that a method string names, in canonical order; none for ``standard``.

    Raises:
        UserError: an unknown part, a part given twice, two parts for one slot, or two that contradict.

    >>> [named.text for named in read_parts("mirror+ppots+strats")]
    ['strats', 'ppots', 'mirror']
    """
    names = [name.strip() for name in text.split("+")]
    if names in ([STANDARD], [AUTOREGRESSIVE]):
        return tuple(filter(None, map(find_part, names)))
    chosen: dict[str, Named] = {}
    for name in names:
        if name in (STANDARD, AUTOREGRESSIVE):
            raise UserError(f"method '{text}': '{name}' stands alone, found it combined with other parts.")
        named = find_part(name)
        if named is None:
            joined = re.sub(r"[\s,;/|&]+", "+", name)
            meant = f"; write {joined}" if joined != name else did_you_mean(name, (STANDARD, *PARTS))
            raise UserError(f"method '{text}': unknown part '{name}'{meant}.")
        for slot in named.part.fills:
            if other := chosen.get(slot):
                raise UserError(f"method '{text}': '{other.text}' and '{name}' contradict: both choose the {slot}.")
            chosen[slot] = named
    parts = tuple(dict.fromkeys(chosen[slot] for slot in SLOTS if slot in chosen))
    for one, other in permutations(parts, 2):
        if why := one.part.contradicts.get(other.part.name):
            raise UserError(f"method '{text}': '{one.text}' and '{other.text}' contradict: {why}.")
    return parts


@dataclass(frozen=True)
class OfParts:
    """What the parts of a method decide, known from its name alone.

    >>> OfParts("strats+ppots+mirror").signal
    'loss'
    """

    name: str = STANDARD
    """The parts in canonical order, joined by ``+``."""

    @property
    def parts(self) -> tuple[Named, ...]:
        """The parts in canonical order; none for ``standard``."""
        return read_parts(self.name)

    def has(self, name: str) -> bool:
        """Whether the method has the part of that name."""
        return any(named.part.name == name for named in self.parts)

    def reads(self, option: str) -> bool:
        """Whether one of the parts reads that option."""
        return any(option in named.part.options for named in self.parts)

    @property
    def signal(self) -> str | None:
        """The quantity whose second moment p is fitted to before training; None where no p is fitted.

        One of ``loss``, ``gradient`` and ``output layer`` (the gradient of the output layer alone).
        """
        return next((named.part.fitted_to for named in self.parts if named.part.fitted_to), None)

    @property
    def needs_p(self) -> bool:
        """Whether t is drawn from a fitted density."""
        return self.signal is not None

    @property
    def adaptive(self) -> bool:
        """Whether the density of t follows the losses during training."""
        return any(named.part.tends_to for named in self.parts)

    @property
    def marks(self) -> set[str]:
        """The marks that rows must have for this method."""
        return {named.part.marks for named in self.parts} - {None}

    @property
    def syrm(self) -> bool:
        """Whether the prompt's syntax tokens may be masked too."""
        return self.has("syrm")

    @property
    def ema(self) -> bool:
        """Whether a baseline steadies the reported loss."""
        return self.has("ema")

    @property
    def autoregressive(self) -> bool:
        """Whether it is next-token prediction, for autoregressive models only."""
        return self.has(AUTOREGRESSIVE)

    @property
    def unbiased(self) -> bool:
        """Whether the mean of the loss and its gradient are the standard objective's."""
        return all(named.part.unbiased for named in self.parts)
