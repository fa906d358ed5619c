"""Checks that the keys of an objective go together; each refusal is one sentence. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabledllm.config.objectives import NAMED, in_keys
from stabledllm.errors import UserError
from stabledllm.noise.bell import checked_bell
from stabledllm.noise.weightings import power_of
from stabledllm.noise.windows import checked_window

if TYPE_CHECKING:
    from stabledllm.config.settings import ObjectiveSettings

_NOT_NAMED = {"window": None, "corrected": False, "tokens": "all"}
"""Keys that make another objective of any name that does not stand for them, and what leaves it as it is."""


def check_objective(objective: ObjectiveSettings) -> None:
    """Refuse keys of an objective that do not go together.

    Raises:
        UserError: a key with another value than ``name`` stands for, ``bd3lm`` without its range, a power that the
            weighting does not take, or a bad window or bell.

    >>> from stabledllm.config.settings import ObjectiveSettings
    >>> check_objective(ObjectiveSettings(name="sdar", normalization="row"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: objective.normalization: expected token beside objective.name=sdar, ...
    """
    name, free = objective.name, {"bd3lm": ("window",), "bell": ("window",)}
    for key, value in NAMED[name].keys.items() if name else ():
        if (found := getattr(objective, key)) != value:
            raise UserError(
                f"objective.{key}: expected {value} beside objective.name={name}, which stands for "
                f"{in_keys(NAMED[name].keys)}, found {found}; leave one of them out."
            )
    for key, none in _NOT_NAMED.items() if name else ():
        own = key in NAMED[name].keys or key in free.get(name, ())
        if not own and (found := getattr(objective, key)) != none:
            raise UserError(
                f"objective.{key}: expected none beside objective.name={name}, which stands for "
                f"{in_keys(NAMED[name].keys)}, found {found}; write these keys in the place of the name."
            )
    if name == "bd3lm" and objective.window is None:
        raise UserError(
            "objective.window: expected the range of mask ratios beside objective.name=bd3lm, whose trainer searches "
            "for one, such as [0.3, 0.8], found none."
        )
    power_of(objective.weighting, objective.power)
    checked_window(objective.window, objective.weighting, objective.normalization, objective.corrected)
    checked_bell(objective.bell, objective.weighting)
