"""Objectives by the names of those who train with them: the keys that each stands for. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Named:
    """What a name stands for, and the noise that is drawn for it where it comes from.

    >>> NAMED["fast-dllm"].keys["normalization"]
    'masked'
    """

    of: str
    """Whose objective it is."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Keys of ``objective`` with their values."""
    noise: str = ""
    """Their own noise, as keys of a run; it changes how noisily the objective is estimated and nothing else."""


NAMED = {
    "elbo": Named("LLaDA and this library", {"weighting": "elbo", "normalization": "row"}),
    "masked-mean": Named(
        "a mean over the masked tokens of a batch, without 1/t",
        {"weighting": "unweighted", "normalization": "masked"},
        "method=standard",
    ),
    "masked-mean-row": Named(
        "a mean over each row's own masked tokens, without 1/t",
        {"weighting": "elbo", "normalization": "row"},
        "method=fixedcount",
    ),
    "llada2": Named(
        "LLaDA2's public trainer, dFactory",
        {"weighting": "unweighted", "normalization": "masked", "window": [0.3, 0.8]},
        "method=standard block_t=row",
    ),
    "fast-dllm": Named("Fast-dLLM v2", {"weighting": "unweighted", "normalization": "masked"}, "method=complement"),
    "sdar": Named(
        "SDAR and dllm's BD3LM", {"weighting": "elbo", "normalization": "token"}, "method=standard block_t=row"
    ),
    "bd3lm": Named("BD3-LM", {"weighting": "elbo", "normalization": "token"}, "method=strats"),
    "bell": Named("bell-shaped time sampling", {"weighting": "bell"}, "method=standard"),
    "window-generation": Named(
        "noise as an implicit regulariser", {"weighting": "elbo", "window": [0.5, 1.0]}, "method=standard"
    ),
    "window-discriminative": Named(
        "noise as an implicit regulariser", {"weighting": "elbo", "window": [0.45, 0.55]}, "method=standard"
    ),
    "cart": Named(
        "Dream-Coder's CART",
        {"weighting": "unweighted", "normalization": "masked", "tokens": "cart"},
        "method=standard",
    ),
    "lift": Named("LIFT", {"weighting": "elbo", "normalization": "row", "tokens": "lift"}, "method=standard"),
    "gift": Named("GIFT", {"weighting": "elbo", "normalization": "masked", "tokens": "gift"}, "method=standard"),
}
"""By ``objective.name``. ``bd3lm`` takes ``objective.window`` beside it: its trainer searches for its range of t."""


def in_keys(keys: Mapping[str, Any]) -> str:
    """Keys and values of an objective as they are written.

    >>> in_keys({"weighting": "unweighted", "window": [0.3, 0.8]})
    'weighting=unweighted window=[0.3,0.8]'
    """
    return " ".join(f"{key}={str(value).replace(' ', '')}" for key, value in keys.items())


def without_name(below: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """A run's objective beneath given keys: a name goes where its keys are given anew, its keys where a name is given.

    >>> without_name({"name": "sdar", "normalization": "token"}, {"normalization"})
    {}
    >>> without_name({"name": "sdar", "normalization": "token", "eps": 0.1}, {"name"})
    {'eps': 0.1}
    """
    replaced = {"name", "weighting", "power", "normalization", "window", "corrected", "bell", "tokens"}
    if "name" in given:
        return {key: value for key, value in below.items() if key not in replaced}
    below = {key: value for key, value in below.items() if key not in given}
    return {key: value for key, value in below.items() if key != "name"} if replaced & set(given) else below
