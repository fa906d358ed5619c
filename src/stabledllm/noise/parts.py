"""The table of the parts that a method can have, by their names in a method string.

A new part is a row of :data:`PARTS` and its class. Other code asks a method for what its parts need
(``noise/of_parts.py``), not for their names; only ``syrm`` and ``ema``, which act in the data and in the Trainer, are
asked for by name.

This file loads no torch: a part's class is imported when the part is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name

SOURCE, DENSITY, MASKER, VIEWS = "source", "density", "masker", "views"
"""The choices that parts make by an object, each a field of ``Method``."""
MASKABLE, REPORTED = "maskable set", "reported loss"
"""The choices that parts make in the data and in the Trainer."""
SLOTS = (SOURCE, DENSITY, MASKER, VIEWS, MASKABLE, REPORTED)
"""All the choices, in the order of the parts in a method's name; at most one part per slot."""
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
    bell: float = 2.0


@dataclass(frozen=True, eq=False)
class Part:
    """One row of the table: a part, the slots that it fills and what it needs.

    >>> PARTS["isad"].marks, PARTS["isad"].unbiased
    ('delimiter', False)
    """

    name: str
    fills: Mapping[str, str | None]
    """Its slots, each with the class of this package that makes the object in it, or None."""
    options: tuple[str, ...] = ()
    """The options that it reads: the arguments of the class, in their order."""
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
    """Whether it is defined for the bound's masks only, and so not for ``cosine``, a window or a bell, but where
    ``noise/takes.py`` says otherwise."""
    contradicts: Mapping[str, str] = field(default_factory=dict)
    """Parts of other slots that it cannot be combined with, and why."""

    def objects(self, options: MethodOptions, views: int) -> dict[str, object]:
        """The objects in its slots, made from the options that it reads, or from the number of views that it makes."""
        values = [views] if self.number else [getattr(options, name) for name in self.options]
        return {slot: resolve_name(f"stabledllm.noise.{name}")(*values) for slot, name in self.fills.items() if name}


_TABLE = (
    Part(AUTOREGRESSIVE, {MASKER: "maskers.NextToken"}, bound_only=True),
    Part("strats", {SOURCE: "sources.Stratified"}, options=("strata",)),
    Part("lowdisc", {SOURCE: "sources.LowDiscrepancy"}),
    Part("ppots", {DENSITY: None}, fitted_to="loss"),
    Part("ppots-gradient", {DENSITY: None}, fitted_to="gradient", bound_only=True),
    Part("ppots-head", {DENSITY: None}, fitted_to="output layer", bound_only=True),
    Part("adaptive", {DENSITY: None}, tends_to="ppots"),
    Part(
        "clipped",
        {DENSITY: "densities.Clipped"},
        options=("clip_low", "clip_high"),
        unbiased=False,
        bound_only=True,
        contradicts={"complement": "the second view has 1 - t, outside the interval"},
    ),
    Part("bell", {DENSITY: "bell.proposal"}, options=("bell",)),
    Part("fixedcount", {MASKER: "maskers.FixedCount"}),
    Part("complement", {MASKER: "maskers.Complement", VIEWS: "views.ComplementPair"}, bound_only=True),
    Part("isad", {MASKER: "maskers.ISAD"}, options=("isad_delta",), marks="delimiter", unbiased=False, bound_only=True),
    Part("isad-exact", {MASKER: "maskers.isad.exact"}, options=("isad_delta",), marks="delimiter", bound_only=True),
    Part("mirror", {VIEWS: "views.Mirror"}, options=("mirror_below",)),
    Part("multisample", {VIEWS: "views.MultiSample"}, number=2),
    Part("partition", {VIEWS: "views.Partition"}, number=3),
    Part("syrm", {MASKABLE: None}, marks="syntax", unbiased=False),
    Part("ema", {REPORTED: None}, options=("ema_bins",)),
)
PARTS = {part.name: part for part in _TABLE}
FOLLOWED = {part.name: part.tends_to for part in PARTS.values() if part.tends_to}
"""The densities that follow the losses during training, each with the fitted density that it tends to."""
