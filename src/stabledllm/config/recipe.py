"""Finds, combines and overrides recipes.

A recipe may build on others: by ``extends: NAME`` or a list of names, whose keys it takes over and overrides, and by
``NAME+PART`` on the command line, which lays one recipe over another. Mappings are merged key by key; any other value
replaces the earlier one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from stabledllm.config.checking import Read, check, read_settings
from stabledllm.config.from_run import with_run
from stabledllm.config.reward_names import refuse_files_of_recipes
from stabledllm.config.run_folder import model_meant, refuse_record
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.config.twice import Once
from stabledllm.config.written import Written, read_written, settle
from stabledllm.errors import Gathered, Mistakes, UserError, did_you_mean, nearest
from stabledllm.plain_text import plain_text
from stabledllm.runtime.nearby import nearby

__all__ = [
    "apply_overrides", "check", "find_recipe", "load_recipe", "merge", "read_recipe", "resolve",
    "shipped_launches", "shipped_recipes", "tree_of",
]  # fmt: skip
_MOST_PARENTS, _MOST_DOTS = 30, 20
_ENDINGS, _OF_DATA = (".yaml", ".yml"), (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")


@cache
def shipped_recipes() -> dict[str, str]:
    """The text of every recipe in the package by its name, with its sub-folder (``table1/gsm8k``)."""
    return _yaml_files("recipes")


def shipped_launches() -> dict[str, str]:
    """The text of every configuration of ``accelerate launch`` in the package by its name (``accelerate/fsdp2``)."""
    return {f"accelerate/{name}": text for name, text in _yaml_files("launch").items()}


def _yaml_files(folder: str) -> dict[str, str]:
    texts = {}
    with as_file(files("stabledllm") / folder) as root:
        for path in sorted(root.rglob("*.yaml")):
            texts[path.relative_to(root).with_suffix("").as_posix()] = path.read_text(encoding="utf-8")
    return texts


def find_recipe(name: str) -> str:
    """The text of a recipe, given as a file or by the name of a shipped one (``lora`` for ``parts/lora``).

    Raises:
        UserError: neither exists.
    """
    return _find(name, None)[0]


def load_recipe(name: str, overrides: Sequence[str] = ()) -> TrainSettings | ExperimentSettings:
    """The settings of a recipe; one with ``methods`` or ``base`` is an experiment.

    Raises:
        UserError: the YAML is broken, or a parent is missing or the recipe's own child.
        Mistakes: every key that is unknown, value that is of the wrong kind, and override that is malformed.
    """
    read = read_recipe(name, overrides)
    if read.sentences:
        raise Mistakes(read.sentences)
    return read.settings


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Read:
    """The settings of a recipe, and what is wrong with its keys, values and overrides.

    Raises:
        UserError: the YAML is broken, or a parent is missing or the recipe's own child.
    """
    tree, gathered, what = tree_of(name), Gathered(), f"recipe '{plain_text(name)}'"
    kind = ExperimentSettings if "methods" in tree or "base" in tree else TrainSettings
    once = Once()
    for override in overrides:
        with gathered.check():
            once.check(override)
            if kind is TrainSettings and override.startswith("base."):
                meant = plain_text(override.partition("=")[0].removeprefix("base."))
                raise UserError(f"override 'base.{meant}': expected a key of one training run; write {meant}.")
            _set(tree, override)
    if kind is ExperimentSettings:
        tree = _under_base(tree, what, gathered)
    refuse_files_of_recipes(tree, gathered)
    told: list[str] = []
    with gathered.check():
        tree, told = with_run(tree, kind)
    read = read_settings(tree, kind, what)
    return Read(read.settings, [*gathered.sentences, *read.sentences], read.wrong, told)


def _under_base(tree: dict, what: str, gathered: Gathered) -> dict:
    """The tree of an experiment with the keys of a run that stand beside ``base`` put into it, and told of."""
    beside = [key for key in tree if key in TrainSettings.model_fields and key not in ExperimentSettings.model_fields]
    base = tree.get("base", {})
    if not beside or not isinstance(base, dict):
        return tree
    meant = [{"method": "methods", "seed": "seeds"}.get(key, f"base.{key}") for key in beside]
    in_base = any("." in key for key in meant)
    expected = "under 'base:', the run that an experiment varies" if in_base else "a list of them in an experiment"
    gathered.add(f"{what}: keys {', '.join(beside)}: expected {expected}; write {', '.join(meant)}.")
    moved = merge({key: tree[key] for key in beside}, base)
    return {key: value for key, value in tree.items() if key not in beside} | {"base": moved}


def resolve(name: str) -> dict:
    """The keys of a recipe with those of its parents and parts as plain values; neither keys nor values are checked."""
    return settle(tree_of(name))


def tree_of(name: str) -> dict:
    """The keys of a recipe with those of its parents and parts, every value as text for the settings to read.

    Raises:
        UserError: no such recipe, or broken YAML.
    """
    parts = [name] if _exists(name) else name.split("+")
    if not all(parts):
        meant = plain_text("+".join(filter(None, parts)))
        raise UserError(
            f"recipe '{plain_text(name)}': expected names joined by '+', found an empty one; write {meant or 'a name'}."
        )
    if name.endswith(_OF_DATA) and _is_file(Path(name)):
        raise UserError(
            f"recipe '{plain_text(name)}': expected a recipe, found a file of data; write sft model=MODEL "
            f"data.train={plain_text(name)}."
        )
    tree: dict = {}
    trees: dict[str, dict] = {}
    for part in parts:
        merge(tree, _read(part, None, (), trees))
    return tree


def merge(tree: dict, over: dict) -> dict:
    """Merge ``over`` into ``tree``, in place, and return it: mappings key by key, other values replaced.

    ``over`` stays as it is.
    """
    for key, value in over.items():
        if isinstance(value, dict):
            below = tree.get(key)
            tree[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            tree.pop(key, None)  # the old key also carries the place where it was written
            tree[key] = value
    return tree


def _read(name: str, beside: Path | None, chain: tuple[str, ...], read: dict[str, dict]) -> dict:
    """The resolved tree of one recipe.

    Args:
        beside: folder of the file that names the recipe. chain: the recipes that led to it, outermost first.
        read: the trees read so far by name, so that each file is read once.
    """
    try:
        text, home = _find(name, beside)
    except UserError as error:
        raise UserError(f"recipe '{chain[-1]}': extends: {error}") if chain else error from None
    identity = str(home) if home else _shipped(name)
    if identity in chain:
        raise UserError(f"recipe '{chain[0]}': extends goes in a circle: {' -> '.join((*chain, identity))}.")
    if len(chain) > _MOST_PARENTS:
        raise UserError(f"recipe '{chain[0]}': extends: expected at most {_MOST_PARENTS} recipes in a row, found more.")
    if identity not in read:
        tree = read_written(text, f"recipe '{plain_text(name)}'")
        if not isinstance(tree, dict):
            found = "list" if isinstance(tree, list) else "nothing" if tree.null else "a value"
            raise UserError(f"recipe '{plain_text(name)}', line 1: expected keys and values, found {found}.")
        refuse_record(name, tree)
        folder, chain = home.parent if home else None, (*chain, identity)
        if isinstance(tree.get("base"), dict):
            tree["base"] = _extend(tree["base"], folder, chain, read)
        read[identity] = _extend(tree, folder, chain, read)
    return read[identity]


def _extend(tree: dict, folder: Path | None, chain: tuple[str, ...], read: dict[str, dict]) -> dict:
    """The tree laid over the parents that its ``extends`` names."""
    parents = settle(tree.pop("extends", []))
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        found = plain_text(repr(parents))
        raise UserError(f"recipe '{chain[-1]}': key 'extends': expected a name or a list of names, found {found}.")
    whole: dict = {}
    for parent in parents:
        merge(whole, _read(parent, folder, chain, read))
    return merge(whole, tree)


def _exists(name: str) -> bool:
    return _is_file(Path(name)) or _shipped(name) is not None


def _is_file(path: Path) -> bool:
    try:
        return path.expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, the home of nobody
        return False


def _shipped(name: str) -> str | None:
    """The full name of a shipped recipe or part, or None."""
    bare = name.removesuffix(".yaml")
    return next((full_name for full_name in (bare, f"parts/{bare}") if full_name in shipped_recipes()), None)


def _find(name: str, beside: Path | None) -> tuple[str, Path | None]:
    """The text of a recipe, and its file (None for a shipped one)."""
    for path in (beside / name if beside else None, Path(name)):
        if path and _is_file(path):
            return _text_of(path.expanduser(), name), path.expanduser().resolve()
    shipped = shipped_recipes()
    if full_name := _shipped(name):
        return shipped[full_name], None
    shorts = [one.removeprefix("parts/") for one in shipped]
    path = (beside or Path()) / name
    near = nearby(path, _ENDINGS) if name else ""
    near = did_you_mean(name, shorts, most=0) if nearest(name, shorts) or not near else near
    raise UserError(
        f"recipe '{plain_text(name)}': expected a file or a shipped recipe, found neither"
        f"{model_meant(name) or near or '; stabledllm ls lists those that ship'}."
    )


def _text_of(path: Path, name: str) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"recipe '{plain_text(name)}', line {line}: expected UTF-8, found the byte 0x{content[error.start]:02x}."
        ) from None


def apply_overrides(tree: dict, overrides: Sequence[str]) -> dict:
    """Set ``dotted.key=value`` in the tree, in place, and return it.

    Raises:
        Mistakes: an override has no '=', gives a key again, or its key lies below one that holds a value.
    """
    gathered, once = Gathered(), Once()
    for override in overrides:
        with gathered.check():
            once.check(override)
            _set(tree, override)
    gathered.refuse()
    return tree


def _meant(override: str) -> str:
    """The clause on what to write instead of an override that is none."""
    bare = override.strip().lstrip("-")
    key, colon, value = bare.partition(":")
    if override.startswith("-") and bare:
        return f"; write {re.split('[= ]', bare)[0]}=VALUE, without dashes"
    if colon and key.replace(".", "").replace("_", "").isalnum() and not value.startswith(("/", "\\")):
        return f"; write {key}={plain_text(value.strip())}"
    if _shipped(bare):
        return f"; recipes are joined by +: write RECIPE+{plain_text(bare)}"
    return f"; write {plain_text(bare)}=VALUE" if bare.replace(".", "").replace("_", "").isalpha() else ""


def _set(tree: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    shown = plain_text(key)  # not the value, which may be a secret
    *path, last = parts = key.split(".")
    if not equals or not all(parts):
        found = "a name that is empty" if equals else "no '='"
        raise UserError(f"override '{shown}': expected key=value, found {found}{_meant(override)}.")
    if key != key.strip(" -"):
        bare = plain_text(key.strip(" -"))
        raise UserError(
            f"override '{shown}': expected KEY=VALUE without dashes and blanks, found some; write {bare}=VALUE."
        )
    if len(parts) > _MOST_DOTS:
        raise UserError(f"override '{shown}': expected at most {_MOST_DOTS} names in a key, found {len(parts)}.")
    node: Any = tree
    for part in path:
        below = node.get(part)
        if below is None or (isinstance(below, Written) and below.null):
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UserError(f"override '{shown}': '{plain_text(part)}' holds a value, not keys.")
    node.pop(last, None)
    node[last] = Written(text, f"override '{plain_text(key)}'", typed=True)
