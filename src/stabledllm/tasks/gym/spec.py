"""What ``reasoning-gym:DATASET,key=value,...`` asks for: a set, our own keys, and keys of the set's configuration."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from stabledllm.errors import UserError, did_you_mean
from stabledllm.tasks.gym.package import NAME, quiet, registered

GSM_SYMBOLIC = "gsm_symbolic"
SIZE = 500
"""Rows of a split that nothing else limits: the package's own default."""
LARGEST_SIZE = 1 << 17
"""Rows that even the smallest split can give out of the items that lie between two seeds."""
LARGEST_SEED = (1 << 12) - 1
"""Beyond this seed items would begin at numbers that NumPy, which some sets draw with, takes for no seed."""
_OWN = ("size", "seed", "response")
_RESPONSES = ("worked", "answer")
_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")
_BY_HASH = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
"""Sets that iterate over Python's sets of strings, whose order is another in every process; a test looks for more."""


@dataclass(frozen=True)
class GymSpec:
    """A checked specification. ``keys``: values of the set's configuration, but for ``size`` and ``seed``."""

    text: str
    name: str
    size: int | None = None
    seed: int | None = None
    response: Literal["worked", "answer"] = "worked"
    """Of gsm_symbolic: the worked solution, which ends in ``#### NUMBER``, or the bare number."""
    keys: dict[str, Any] = field(default_factory=dict)


def parse(where: str | None) -> GymSpec:
    """Read and check what follows ``reasoning-gym:``, as the set's own configuration does.

    Raises:
        UserError: no set of that name, no such key, a value of another kind or one that the set refuses; or the package
            is not installed.
    """
    text = f"{NAME}:{where or ''}"
    name, *pairs = _OUTSIDE_BRACKETS.split(where or "")
    sets = registered(text)
    if name == "composite":
        raise UserError(f"data '{text}': expected one set, found a mixture of several; name one of them in each run.")
    if name not in sets:
        near = did_you_mean(name, [one for one in sets if one != "composite"], most=0) if name else ""
        found = f"found no set called '{name}'{near}" if name else "found no name; for instance reasoning-gym:chain_sum"
        raise UserError(f"data '{text}': expected reasoning-gym:DATASET,key=value, {found}.")
    if name in _BY_HASH and os.environ.get("PYTHONHASHSEED") != "0":
        raise UserError(
            f"data '{text}': expected the environment variable PYTHONHASHSEED=0, without which '{name}' makes other "
            f"items in every process, found {os.environ.get('PYTHONHASHSEED', 'none')}."
        )
    own, keys = {}, {}
    kinds = _kinds(sets[name][1])
    own_kinds = {key: _OWN_KINDS[key] for key in _OWN if key != "response" or name == GSM_SYMBOLIC}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"data '{text}': expected key=value behind the set's name, found '{pair}'.")
        if key in own or key in keys:
            raise UserError(f"data '{text}': expected every key once, found '{key}' twice.")
        known = kinds | own_kinds
        if key not in known:
            near = did_you_mean(key, known)
            raise UserError(f"data '{text}': expected a key of '{name}', found '{key}'{near}.")
        (own if key in own_kinds else keys)[key] = _value(text, key, value.strip(), known[key])
    for key, least, most in (("size", 1, LARGEST_SIZE), ("seed", 0, LARGEST_SEED)):
        if not least <= own.get(key, least) <= most:
            raise UserError(f"data '{text}': expected {key} in [{least}, {most}], found {own[key]}.")
    spec = GymSpec(text, name, keys=keys, **own)
    config_of(spec, 0, 1)
    return spec


def config_of(spec: GymSpec, seed: int, size: int) -> Any:
    """The set's configuration.

    Raises:
        UserError: the set refuses it, in the set's own words.
    """
    try:
        with quiet():
            config = registered(spec.text)[spec.name][1](**spec.keys, seed=seed, size=size)
            if hasattr(config, "validate"):
                config.validate()
    except (AssertionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or "one out of range"
        raise UserError(f"data '{spec.text}': expected values that '{spec.name}' takes, found: {reason}.") from None
    return config


def _kinds(config: type) -> dict[str, Any]:
    """The kinds of the keys of a configuration that can be written; ``seed`` and ``size`` are ours."""
    hints = get_type_hints(config)
    return {each.name: hints[each.name] for each in dataclasses.fields(config) if each.name not in ("seed", "size")}


def _value(text: str, key: str, written: str, kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    value: Any = written
    if written.startswith("[") and written.endswith("]"):
        value = [one.strip() for one in written[1:-1].split(",")] if written[1:-1].strip() else []
    elif written.lower() in ("null", "none"):
        value = None
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except PydanticUserError:  # a dataclass of the package's own, which takes no configuration
        kinds = "a value that can be written in a line"
    except ValidationError as error:
        kinds = error.errors()[0]["msg"].removeprefix("Input should be ")
    raise UserError(f"data '{text}': expected {kinds} for '{key}', found '{written}'.")


_OWN_KINDS = {"size": int, "seed": int, "response": Literal[_RESPONSES]}
