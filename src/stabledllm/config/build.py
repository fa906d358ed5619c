"""From settings to the plain objects that the library works with."""

from __future__ import annotations

from stabledllm.config.settings import DecodingSettings, MethodSettings, ObjectiveSettings
from stabledllm.decoding import DecodingOptions
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.objective import Objective


def build_method(name: str, settings: MethodSettings) -> Method:
    """The method with its options."""
    return Method.parse(name, MethodOptions(**settings.model_dump()))


def build_objective(settings: ObjectiveSettings) -> Objective:
    """The objective."""
    return Objective(**settings.model_dump())


def build_decoding(settings: DecodingSettings) -> DecodingOptions:
    """The decoding options."""
    return DecodingOptions(**settings.model_dump())
