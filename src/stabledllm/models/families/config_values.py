"""Checks of the values of a ``config.json`` before anything is built from them.

Without them a wrong type or sign would fail deep inside a layer, and a million layers would be built for hours.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from stabledllm.errors import UserError

_REPEATED = re.compile(r"(^|_)(n|num|number)_.*|.*(layers?|blocks?|experts|heads|depth)$")
"""Keys that say how many of something are built."""
_AMOUNTS = re.compile(r".*(vocab|embeddings|positions|ctx|tokens|params|buckets|size|dim|width|embd|inner|seed).*")
"""Keys that match this too but say how large something is, which costs no time to build."""
_BOUNDS = {
    re.compile(r".*(dropout|dropout_prob|pdrop|drop_rate)$"): (lambda value: 0 <= value < 1, "in [0, 1)"),
    re.compile(r".*(_eps|_epsilon)$"): (lambda value: 0 < value < 1, "in (0, 1)"),
    re.compile(r"rope_theta"): (lambda value: 0 < value < math.inf, "above 0"),
}
"""Bounds that hold in every architecture; outside of them training fails, or all logits are equal."""
_MAY_BE_NONE = ("first_k_dense_replace", "num_shared_experts")
"""Counts of layers and of experts that a model may have none of."""
_MOST_OF_A_NEW_MODEL = 1000
_MOST_OF_ANYTHING = 2**31 - 1
_DEEPEST = 30
_BACK_ENDS = (None, "sdpa", "eager", "flash_attention_2")


def check_form(config: Mapping[str, Any], where: str) -> None:
    """Check what all families have in common: the keys that choose code, and that nothing outside the folder is loaded.

    Raises:
        UserError: a key of the wrong type, values nested too deep, or a key that would load something else.
    """
    if _depth(config) > _DEEPEST:
        raise UserError(f"{where}: expected values nested at most {_DEEPEST} deep, found deeper ones.")
    kinds = {"model_type": (str, "a name"), "architectures": (list, "a list"), "auto_map": (dict, "names")}
    for key, (kind, words) in kinds.items():
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise UserError(f"{where}: {key}: expected {words}, found {config[key]!r}.")
    if not all(isinstance(name, str) for name in config.get("architectures") or []):
        raise UserError(f"{where}: architectures: expected names, found {config['architectures']!r}.")
    if config.get("transformers_weights") is not None:
        raise UserError(f"{where}: expected no transformers_weights, found {config['transformers_weights']!r}.")
    # A back end with a slash is a repository, whose kernels transformers would fetch and run.
    for key, value in _leaves(config):
        if key in ("attn_implementation", "_attn_implementation", "experts_implementation") and (
            value is not None and "/" in str(value)
        ):
            raise UserError(f"{where}: {key}: expected one of {', '.join(map(str, _BACK_ENDS[1:]))}, found {value!r}.")


def check_numbers(config: Mapping[str, Any], where: str, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Check the numbers of a config before a layer is built from them.

    Counts of layers, heads and experts must not exceed what the weights could hold, and others keep their bounds.

    Args:
        shapes: the shapes of the weights in the files; None for a new model.

    Raises:
        UserError: a value that is no number where one must be, is negative, or is out of its bounds.
    """
    most, held = _MOST_OF_A_NEW_MODEL, "a new model"
    if shapes is not None:
        most = max([_MOST_OF_A_NEW_MODEL, len(shapes), *(size for shape in shapes.values() for size in shape)])
        held = f"{len(shapes)} weights"
    for key, value in _leaves(config):
        for pattern, (within, words) in _BOUNDS.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and pattern.fullmatch(key) and not (number and within(value)):
                raise UserError(f"{where}: {key}: expected a number {words}, found {_short(value)}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, int) and abs(value) > _MOST_OF_ANYTHING:
            raise UserError(f"{where}: {key}: expected at most {_MOST_OF_ANYTHING}, found {_short(value)}.")
        if not _REPEATED.fullmatch(key) or _AMOUNTS.fullmatch(key):
            continue
        if not 0 <= value <= most:
            raise UserError(f"{where}: {key}: expected 0 to {most}, as for {held}, found {_short(value)}.")


def check_values(kind: type, config: Mapping[str, Any], where: str) -> None:
    """Check that every value has the type and the sign that a configuration's class declares for its key.

    Sizes are at least 1, token ids at least 0, other numbers finite and above 0 (a deviation may be 0).

    Raises:
        UserError: naming the first key with another value.
    """
    aliases = kind.attribute_map if isinstance(getattr(kind, "attribute_map", None), dict) else {}
    for key, hint, parameter in _declared(kind):
        for name in (key, *(alias for alias, own in aliases.items() if own == key)):
            if name in config and (expected := _mismatch(name, hint, config[name], parameter.default)):
                raise UserError(f"{where}: {name}: expected {expected}, found {_short(config[name])}.")


def _declared(kind: type) -> Iterator[tuple[str, Any, inspect.Parameter]]:
    """The typed keys of a configuration's class and of those of its base classes that are this library's."""
    for part in kind.__mro__:
        if "model_type" in vars(part) and part.__module__.startswith(__name__.partition(".")[0]):
            hints = get_type_hints(part.__init__)
            for key, parameter in inspect.signature(part.__init__).parameters.items():
                if key in hints:
                    yield key, hints[key], parameter


def _mismatch(key: str, hint: Any, value: Any, default: Any) -> str | None:
    """A description of the values that are allowed for a key; None where the value is one of them."""
    kinds = set(getattr(hint, "__args__", ())) if not hasattr(hint, "__origin__") else set()
    kinds = kinds or {hint}
    if value is None:
        return None if type(None) in kinds or default is None else "a value"
    kinds.discard(type(None))
    kind = next(iter(kinds))
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is int:
        least = 0 if key.endswith("token_id") or key in _MAY_BE_NONE else 1
        right = type(value) is int and least <= value <= _MOST_OF_ANYTHING
        return None if right else f"a whole number of at least {least}"
    if kind is float:
        least_too = key.endswith(("range", "std"))
        right = type(value) in (int, float) and math.isfinite(value) and (value > 0 or (least_too and value == 0))
        return None if right else "a finite number above 0"
    if getattr(kind, "__origin__", None) is list:
        right = isinstance(value, list) and all(type(part) is int and part >= 0 for part in value)
        return None if right else "a list of whole numbers"
    return None


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with its key; a value in a list has the list's key."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part, key)
    else:
        yield key, value


def _depth(value: Any) -> int:
    """How deep values are nested; counting stops one level beyond what is allowed."""
    level, depth = [value], 0
    while level and depth <= _DEEPEST:
        level = [
            part
            for outer in level
            if isinstance(outer, Mapping | list)
            for part in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
        depth += 1
    return depth


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**20:
        return "one of more than 20 digits"
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
