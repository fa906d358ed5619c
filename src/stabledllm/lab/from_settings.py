"""Makes the plain options of measurements from settings."""

from __future__ import annotations

from stabledllm.config.settings import DecomposeSettings, PPOTSSettings
from stabledllm.lab.measure.options import DecomposeOptions, GradientOptions, ProbeOptions

_COMMON = ("rows", "rates", "masks", "design", "forwards", "steps", "seed")


def build_measuring(settings: DecomposeSettings) -> DecomposeOptions:
    """The options of a decomposition of these settings."""
    return DecomposeOptions(
        **{name: getattr(settings, name) for name in _COMMON},
        probe=build_probing(settings.probe),
        grad=GradientOptions(**settings.grad.model_dump()),
    )


def build_probing(settings: PPOTSSettings) -> ProbeOptions:
    """The options of a probe and a fit of these settings."""
    return ProbeOptions(**settings.model_dump())
