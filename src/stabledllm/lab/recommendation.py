"""The recommendation of a method for ``stabledllm train``, with the lines of its recipe."""

from __future__ import annotations

import yaml

from stabledllm.config.settings import DataSettings, DecomposeSettings, ObjectiveSettings
from stabledllm.lab.measure.recommendation import (
    PROBED,
    QUANTITIES,
    Recommendation,
    choose,
    is_comparable,
    set_options,
    without_probe,
)

__all__ = ["QUANTITIES", "Recommendation", "is_comparable", "recommend"]


def recommend(record: dict, quantity: str | None = None) -> Recommendation:
    """The method to train with, as :func:`~stabledllm.lab.measure.recommendation.choose` chooses it.

    ``ppots`` is named as ``adaptive``, which reaches that density without a probe.

    Args:
        record: ``decomposition.json``. quantity: ``gradient`` (the default where it was measured) or ``loss``.
    """
    return choose(record, quantity, without_probe, recipe_lines)


def recipe_lines(record: dict, method: str, views: float, forwards: int) -> str:
    """YAML for ``stabledllm train``: the method, and the rows of a step that cost ``forwards`` forward passes."""
    config, keys = record["config"], _given(record["config"])
    tree = {"model": record["model"], "data": {"train": record["data"]} | keys.pop("data"), **keys}
    lines = [*yaml.safe_dump(tree, sort_keys=False).splitlines(), f"method: {method}"]
    lines.append(f"batch: {max(1, round(forwards / views))}")
    if blocks := record.get("blocks"):
        lines += [f"block_size: {blocks['block_size']}", f"decoding: {{block: {blocks['block_size']}}}"]
        if config.get("block_start", "noisy") != "noisy":
            lines.append(f"block_start: {config['block_start']}")
    if options := set_options(record["config"]["method_options"], method):
        lines += ["method_options:", *(f"  {name}: {value}" for name, value in options.items())]
    if any(part in PROBED for part in method.split("+")):
        probe = record["config"]["probe"]
        lines.append("ppots: {" + ", ".join(f"{name}: {probe[name]}" for name in ("rows", "rates", "masks")) + "}")
    return "\n".join(lines)


def keys_of_recipe(settings: DecomposeSettings) -> dict:
    """The keys of data and objective that are not as by default, but for the rows and the kind."""
    out = _given(settings.model_dump())
    out.get("objective", {}).pop("kind", None)
    return out


def _given(config: dict) -> dict:
    """The keys of ``data``, which may be none, and of ``objective``, where there are any, that differ from defaults."""
    data = set_keys(config.get("data") or {}, DataSettings().model_dump())
    objective = set_keys(config.get("objective") or {}, ObjectiveSettings().model_dump())
    return {"data": data} | ({"objective": objective} if objective else {})


def set_keys(settings: dict, defaults: dict) -> dict:
    """The settings that differ from their defaults."""
    out = {}
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            value, default = set_keys(value, default), {}
        if value != default:
            out[name] = value
    return out
