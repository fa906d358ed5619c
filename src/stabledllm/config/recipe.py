"""Finding, combining, overriding and checking recipes.

A recipe may build on others: ``extends: NAME`` or a list of names, whose keys it takes over and overrides, and
``NAME+PART`` on the command line, which lays one recipe over another. Mappings are merged key by key, anything else
replaces what was there; the later one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.errors import UserError, did_you_mean

Settings = TypeVar("Settings", TrainSettings, ExperimentSettings)


@cache
def shipped_recipes() -> dict[str, str]:
    """Name to text of every recipe in the package, sub-folders included (``table1/gsm8k``)."""
    found = {}
    with as_file(files("stabledllm") / "recipes") as root:
        for path in sorted(root.rglob("*.yaml")):
            found[path.relative_to(root).with_suffix("").as_posix()] = path.read_text(encoding="utf-8")
    return found


def find_recipe(name: str) -> str:
    """Text of a recipe: a file, or the name of a shipped one (``lora`` for ``parts/lora``).

    Raises:
        UserError: neither exists.
    """
    return _find(name, None)[0]


def load_recipe(name: str, overrides: Sequence[str] = ()) -> TrainSettings | ExperimentSettings:
    """The settings of a recipe; one with ``methods`` is an experiment.

    Raises:
        UserError: broken YAML, an unknown key, a value of the wrong kind, a malformed override, or a parent that is
            missing or the recipe's own child.
    """
    tree = apply_overrides(resolve(name), overrides)
    return check(tree, ExperimentSettings if "methods" in tree or "base" in tree else TrainSettings, f"recipe '{name}'")


def resolve(name: str) -> dict:
    """The keys of a recipe with those of its parents and parts; nothing is checked beyond that."""
    parts = [name] if _exists(name) else name.split("+")
    tree: dict = {}
    for part in parts:
        merge(tree, _read(part, None, ()))
    return tree


def merge(tree: dict, over: dict) -> dict:
    """Lay ``over`` on ``tree``, in place: mappings key by key, anything else replaced."""
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = merge(tree[key], value) if both else value
    return tree


def _read(name: str, beside: Path | None, chain: tuple[str, ...]) -> dict:
    """The resolved tree of one recipe. ``beside``: folder of the file that names it. ``chain``: who asks."""
    try:
        text, home = _find(name, beside)
    except UserError as error:
        raise UserError(f"recipe '{chain[-1]}': extends: {error}") if chain else error from None
    known = str(home) if home else _shipped(name)
    if known in chain:
        raise UserError(f"recipe '{chain[0]}': extends goes in a circle: {' -> '.join((*chain, known))}.")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe '{name}': expected YAML, found {str(error).splitlines()[0]}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe '{name}': expected keys and values, found {type(tree).__name__}.")
    folder, chain = home.parent if home else None, (*chain, known)
    if isinstance(tree.get("base"), dict):
        tree["base"] = _extend(tree["base"], folder, chain)
    return _extend(tree, folder, chain)


def _extend(tree: dict, folder: Path | None, chain: tuple[str, ...]) -> dict:
    """The tree laid over the parents it names."""
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"recipe '{chain[-1]}': key 'extends': expected a name or a list of names, found {parents!r}.")
    whole: dict = {}
    for parent in parents:
        merge(whole, _read(parent, folder, chain))
    return merge(whole, tree)


def _exists(name: str) -> bool:
    return Path(name).expanduser().is_file() or _shipped(name) is not None


def _shipped(name: str) -> str | None:
    """The full name of a shipped recipe or part."""
    bare = name.removesuffix(".yaml")
    return next((known for known in (bare, f"parts/{bare}") if known in shipped_recipes()), None)


def _find(name: str, beside: Path | None) -> tuple[str, Path | None]:
    """Text of a recipe and its file, or None for a shipped one."""
    for path in (beside / name if beside else None, Path(name).expanduser()):
        if path and path.is_file():
            return path.read_text(encoding="utf-8"), path.resolve()
    shipped = shipped_recipes()
    if known := _shipped(name):
        return shipped[known], None
    raise UserError(
        f"recipe '{name}': expected a file or a shipped recipe, found neither{did_you_mean(name, shipped)}."
    )


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
        # An optional group of settings is a union of them and None.
        kind = next((k for k in (annotation, *get_args(annotation)) if hasattr(k, "model_fields")), kind)
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
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"override '{override}': '{part}' holds a value, not keys.")
    node[last] = _value(text)


def _value(text: str) -> Any:
    """YAML scalar, but 1e-4 is a number as everywhere else in the field."""
    try:
        return float(text) if "e" in text.lower() and text[0] in "0123456789.-+" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text
