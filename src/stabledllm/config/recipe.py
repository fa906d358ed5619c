"""Finding, reading, overriding and checking recipes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.errors import UserError, did_you_mean

Settings = TypeVar("Settings", TrainSettings, ExperimentSettings)


def shipped_recipes() -> dict[str, str]:
    """Name to text of every recipe in the package, sub-folders included (``table1/gsm8k``)."""
    return _yaml_files("recipes")


def shipped_launches() -> dict[str, str]:
    """Name to text of every configuration of ``accelerate launch`` in the package (``accelerate/fsdp2``)."""
    return {f"accelerate/{name}": text for name, text in _yaml_files("launch").items()}


def _yaml_files(folder: str) -> dict[str, str]:
    found = {}
    with as_file(files("stabledllm") / folder) as root:
        for path in sorted(root.rglob("*.yaml")):
            found[path.relative_to(root).with_suffix("").as_posix()] = path.read_text(encoding="utf-8")
    return found


def find_recipe(name: str, shipped: dict[str, str] | None = None) -> str:
    """Text of a recipe: a file, or the name of a shipped one.

    Raises:
        UserError: neither exists.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    shipped = shipped_recipes() if shipped is None else shipped
    if name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    raise UserError(
        f"recipe '{name}': expected a file or a shipped recipe, found neither{did_you_mean(name, shipped)}."
    )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> TrainSettings | ExperimentSettings:
    """The settings of a recipe; one with ``methods`` is an experiment.

    Raises:
        UserError: broken YAML, an unknown key, a value of the wrong kind, or a malformed override.
    """
    try:
        tree = yaml.safe_load(find_recipe(name))
    except yaml.YAMLError as error:
        raise UserError(f"recipe '{name}': expected YAML, found {str(error).splitlines()[0]}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe '{name}': expected keys and values, found {type(tree).__name__}.")
    apply_overrides(tree, overrides)
    return check(tree, ExperimentSettings if "methods" in tree or "base" in tree else TrainSettings, f"recipe '{name}'")


def apply_overrides(tree: dict, overrides: Sequence[str]) -> dict:
    """Set ``dotted.key=value`` in the tree, in place, and return it.

    Raises:
        UserError: an override without '=', or below a key that holds a value.
    """
    for override in overrides:
        _set(tree, override)
    return tree


def check(tree: dict, kind: type[Settings], what: str) -> Settings:
    """The typed settings of a tree, or one sentence about the first thing wrong in it."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = did_you_mean(str(first["loc"][-1]), _keys_at(kind, first["loc"][:-1]))
            raise UserError(f"{what}: unknown key '{where}'{near}.") from None
        raise UserError(f"{what}: key '{where}': {_lower(first['msg'])}, found {first['input']!r}.") from None


def _keys_at(kind: type[BaseModel], path: tuple) -> list[str]:
    for part in path:
        annotation = kind.model_fields[part].annotation
        kind = next((k for k in get_args(annotation) if k is not type(None)), annotation)
    return list(kind.model_fields)


def _lower(message: str) -> str:
    return message[0].lower() + message[1:]


def _set(tree: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': expected key=value, found no '='.")
    *path, last = key.split(".")
    node: Any = tree
    for part in path:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UserError(f"override '{override}': '{part}' holds a value, not keys.")
    node[last] = _value(text)


def _value(text: str) -> Any:
    """YAML scalar, but 1e-4 is a number as everywhere else in the field."""
    try:
        return float(text) if "e" in text.lower() and text[0] in "0123456789.-+" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text
