"""The methods under test: each as the library builds it and as the oracle spells it out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.objective import Objective
from tests.oracle import Setting

FITTED = (2.0, 1.0, 0.7, 1.1, 1.6)
"""Stands for a fitted p(t); 5 cells, so that its edges meet neither k/P nor 1/2."""
EPS = 0.1
"""Large enough for a sample variance to be known to a few per cent."""


_WEIGHTED = {0: "", 1: " unweighted"}


@dataclass(frozen=True)
class Case:
    """A method string with its options, and the same method for the oracle."""

    text: str
    setting: Setting
    options: MethodOptions = field(default_factory=MethodOptions)
    label: str = ""
    normalization: str = "row"
    corrected: bool = False

    def __str__(self) -> str:
        return self.label or self.text

    @property
    def method(self) -> Method:
        return Method.parse(self.text, self.options, self.objective)

    @property
    def sampler(self) -> TSampler:
        return self.method.sampler(Tabulated(FITTED))

    @property
    def objective(self) -> Objective:
        power = self.setting.power
        weighting = {0: "elbo", 1: "unweighted"}.get(power, "power")
        window = None if self.setting.window == (0.0, 1.0) else self.setting.window
        given = {"normalization": self.normalization, "window": window, "corrected": self.corrected}
        if self.setting.bell:
            return Objective("bell", eps=self.setting.eps, bell=self.setting.bell, **given)
        return Objective(weighting, eps=self.setting.eps, power=power, **given)


def case(
    text: str, options: MethodOptions | None = None, *, eps: float = EPS, power: float = 0, label: str = ""
) -> Case:
    """Build the oracle's setting from the words of the method string."""
    options, parts = options or MethodOptions(), text.split("+")
    masker = next((m for m in ("fixedcount", "complement", "isad-exact", "isad") if m in parts), "bernoulli")
    views, count = "single", 1
    if "mirror" in parts:
        views, count = "mirror", 2
    for name, without_number in (("multisample", 2), ("partition", 3)):
        if found := [p for p in parts if p.startswith(name)]:
            views, count = name, int(found[0].removeprefix(name) or without_number)
    setting = Setting(
        masker,
        views,
        count,
        density=FITTED if "ppots" in parts else bell_table(options.bell) if "bell" in parts else (1.0,),
        clip=(options.clip_low, options.clip_high) if "clipped" in parts else None,
        eps=eps,
        power=power,
        below=options.mirror_below,
        delta=options.isad_delta,
    )
    return Case(text, setting, options, label or f"{text} eps={eps:g}" + _WEIGHTED.get(power, f" power {power}"))


def bell_table(shape: float, cells: int = 256) -> tuple[float, ...]:
    """The density of the part ``bell``: a twentieth uniform, the rest a symmetric Beta density, in equal cells."""
    masses = np.diff(stats.beta.cdf(np.linspace(0, 1, cells + 1), shape, shape))
    return tuple(0.05 + 0.95 * cells * masses)


def under_bell(text: str, a: float, b: float, window: tuple[float, float] = (0.0, 1.0), **given) -> Case:
    """A case of an objective whose mask ratios are from a bell."""
    plain = case(text, **given)
    setting = replace(plain.setting, bell=(a, b), window=window)
    if setting.below < 1:
        place = (setting.below - window[0]) / (window[1] - window[0])
        setting = replace(setting, below=float(stats.beta.cdf(place, a, b)))
    where = f" in {window[0]:g} to {window[1]:g}" if window != (0.0, 1.0) else ""
    return replace(plain, setting=setting, label=f"{plain} bell {a:g},{b:g}{where}")


def in_window(text: str, low: float, high: float, *, power: float = 0, **given) -> Case:
    """A case of an objective that trains the mask ratios from ``low`` to ``high`` alone."""
    plain = case(text, power=power, **given)
    setting = replace(plain.setting, window=(low, high))
    if setting.below < 1:
        setting = replace(setting, below=(setting.below - low) / (high - low))
    return replace(plain, setting=setting, label=f"{plain} in {low:g} to {high:g}")


def masked_mean(chosen: Case) -> Case:
    """The case as a mean over masked tokens, whose mean probability is that of the middle of the window."""
    low, high = chosen.setting.window
    scale = 1 / ((1 - chosen.setting.eps) * (low + high) / 2 + chosen.setting.eps)
    return replace(
        chosen, setting=replace(chosen.setting, scale=scale), label=f"{chosen} masked mean", normalization="masked"
    )


_BELOW = MethodOptions(mirror_below=0.6)
UNBIASED = [
    case(text)
    for text in (
        "standard",
        "mirror",
        "multisample",
        "multisample3",
        "fixedcount",
        "fixedcount+mirror",
        "fixedcount+multisample",
        "ppots",
        "ppots+mirror",
        "ppots+fixedcount",
        "ppots+fixedcount+mirror",
        "isad-exact",
        "isad-exact+mirror",
        "ppots+isad-exact",
        "partition",
        "ppots+partition2",
        "ppots+fixedcount+partition3",
        "isad-exact+partition2",
        "complement",
        "ppots+complement",
    )
] + [
    case("mirror", _BELOW, label="mirror below 0.6"),
    case("ppots+mirror", _BELOW, label="ppots+mirror below 0.6"),
    case("fixedcount+mirror", _BELOW, label="fixedcount+mirror below 0.6"),
    case("ppots+fixedcount+mirror", _BELOW, label="ppots+fixedcount+mirror below 0.6"),
]
"""One row per draw; all have the standard objective's mean."""

OTHER_OBJECTIVES = [
    *(case(text, power=1) for text in ("standard", "mirror", "ppots+fixedcount", "isad-exact", "ppots+complement")),
    case("ppots", power=0.5),
    case("ppots+fixedcount+mirror", power=0.5),
    case("isad-exact", power=0.5),
    case("complement", power=2.3),
]
"""The unweighted objective, and others by their power of p_mask."""

WINDOWS = [
    *(in_window(text, 0.3, 0.8) for text in ("standard", "ppots+mirror", "fixedcount", "ppots+fixedcount+partition3")),
    *(masked_mean(in_window(text, 0.3, 0.8, power=1)) for text in ("standard", "ppots", "ppots+fixedcount+mirror")),
    *(masked_mean(case(text, power=1)) for text in ("standard", "complement")),
    in_window("fixedcount", 0.5, 1.0, power=0.5),
    in_window("ppots+fixedcount", 0.0, 0.5),
    in_window("mirror", 0.3, 0.8, options=_BELOW),
    replace(
        corrected := in_window("ppots+fixedcount", 0.25, 0.75),
        setting=replace(corrected.setting, scale=0.5),
        label=f"{corrected} corrected",
        corrected=True,
    ),
]
"""A range of mask ratios, and means over the masked tokens."""

BELLS = [
    *(under_bell(text, 2, 2) for text in ("standard", "ppots+mirror", "fixedcount", "ppots+fixedcount+partition3")),
    under_bell("ppots+fixedcount+mirror", 3, 2, eps=0.0),
    under_bell("standard", 3, 2, eps=0.0),
    under_bell("fixedcount", 2, 3, window=(0.2, 0.9)),
    under_bell("mirror", 2, 2, options=_BELOW),
    under_bell("ppots+complement", 3, 2),
    case("bell"),
    case("bell+fixedcount", options=MethodOptions(bell=3.0)),
    case("bell+complement"),
    case("bell+mirror"),
]
"""A bell as the weighting of mask ratios, and as the density of a method whose objective stays the bound."""

BIASED = [case("isad"), case("isad+mirror"), case("isad", power=1), case("clipped"), case("clipped+mirror")]
"""Compared with their own enumerated objectives, which differ from the standard one."""

SMALL_EPS = [case(text, eps=1e-3) for text in ("standard", "mirror", "ppots+mirror", "fixedcount", "isad-exact")]
"""LLaDA's eps: the variance of Bernoulli masks is too heavy-tailed to test, the mean is not."""

ZERO_EPS = [case(text, eps=0.0) for text in ("fixedcount", "fixedcount+mirror", "ppots+fixedcount", "ppots+complement")]
"""At eps = 0 only a fixed count has a finite variance."""
