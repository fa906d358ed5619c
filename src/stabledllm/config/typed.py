"""Reads a value by the type of its key: text as typed, numbers in every usual form, ``true`` or ``false``, ``null``.

A recipe and an override are read alike. Whole numbers may be written ``1e3`` or ``1_000``; ``010`` is ten; ``yes``,
``on`` and ``1`` are no booleans; ``null`` is None where a key may be left out, and text elsewhere.
"""

from __future__ import annotations

import math
import re
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stabledllm.config.written import Written, read_written, settle
from stabledllm.errors import UserError, did_you_mean
from stabledllm.plain_text import plain_text

_NUMBER = re.compile(r"[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)([eE][-+]?\d+)?", re.ASCII)
_DIGITS = 400
"""Most characters of a number."""
_LARGEST = 2**63
_NAME = 240
"""Most bytes of a file's name, which leaves room for the ending of its temporary copy."""
_HASH = "\ue023"
"""Stands for ``#`` while YAML reads what was typed, since YAML would begin a comment there."""
_LISTED, _MOST_LISTED = 8, 20
"""Most names that a refusal lists always, and most that it lists where none is near."""


class Strict(BaseModel):
    """A group of settings that takes no unknown key, no value of another kind and no number that is not finite."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        return as_meant(value, cls.model_fields[info.field_name].annotation)


def as_meant(value: Any, annotation: Any) -> Any:
    """The value that was written for a key of this type; anything but :class:`Written` stays as it is.

    Raises:
        PydanticCustomError: it cannot be read as that type.
    """
    arms = arms_of(annotation)
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise _expected("text that is UTF-8")
    if isinstance(value, Written):
        return _scalar(value, arms)
    if isinstance(value, list):
        items = next((get_args(arm) for arm in arms if get_origin(arm) is list), ())
        return [_item(one, *items) for one in value] if items else _settled(value)
    if isinstance(value, dict) and any(get_origin(arm) is dict for arm in arms):
        return _settled(value)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise _expected("a whole number below 2^63")
    return value


def _item(value: Any, annotation: Any) -> Any:
    """An item of a list as it is meant; a refusal names the item, as the list is what its key holds."""
    try:
        return as_meant(value, annotation)
    except PydanticCustomError as error:
        if not isinstance(value, Written) or "found" in (said := error.message()):
            raise
        found = plain_text(repr(str(value)), longest=120)
        raise PydanticCustomError(
            "as_meant", "{said}, found {found} in the list", {"said": said, "found": found}
        ) from None


def as_name(text: str) -> str:
    """The text, if a file or folder could be called so.

    Raises:
        PydanticCustomError: a null character, or a part that is too long for a file system.
    """
    if "\0" in text or any(len(part.encode()) > _NAME for part in text.split("/")):
        raise _expected(f"a name without null characters and of at most {_NAME} bytes between slashes")
    return text


def arms_of(annotation: Any) -> list[Any]:
    """The types that a union allows, without the extras of Annotated."""
    if get_origin(annotation) is Annotated:
        return arms_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [arm for one in get_args(annotation) for arm in arms_of(one)]
    return [annotation]


def _scalar(value: Written, arms: list[Any]) -> Any:
    text = str(value)
    if NoneType in arms and (
        text == "null" if value.typed and str in arms else value.null and (text or not value.typed)
    ):
        return None
    names = [name for arm in arms if get_origin(arm) is Literal for name in get_args(arm) if isinstance(name, str)]
    if text in names:
        return text
    structured = [arm for arm in arms if get_origin(arm) in (list, dict) or _is_group(arm)]
    if value.typed and structured and text[:1] in ("[", "{"):
        return _parsed(value, structured)
    if str in arms and not (value.null and not value.typed):
        return text
    if bool in arms and text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text[0] in "tT"
    if (int in arms or float in arms) and (number := _number(text, float in arms)) is not None:
        return number
    if Any in arms:
        return _settled(value)
    raise _expected(_in_words(arms, names, text))


def _is_group(arm: Any) -> bool:
    return isinstance(arm, type) and issubclass(arm, BaseModel)


def _parsed(value: Written, arms: list[Any]) -> Any:
    """The list or mapping that was typed on the command line; a group of settings reads its own values later.

    A command line has no comments: there ``#`` is text.
    """
    try:
        parsed = _with_hashes(read_written(str(value).replace("#", _HASH), value.place))
    except UserError as error:
        said = str(error).rstrip(".")
        if str(value).count("{") + str(value).count("[") > str(value).count("}") + str(value).count("]"):
            said += "; a shell splits it at blanks: put quotes around it"
        raise PydanticCustomError("as_meant", "{said}", {"said": said}) from None
    if isinstance(parsed, Written):
        raise _expected(_in_words(arms, [], str(value)))
    return parsed if isinstance(parsed, dict) and any(map(_is_group, arms)) else as_meant(parsed, Union[tuple(arms)])  # noqa: UP007


def _with_hashes(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {_with_hashes(key): _with_hashes(one) for key, one in tree.items()}
    if isinstance(tree, list):
        return [_with_hashes(one) for one in tree]
    return Written(tree.replace(_HASH, "#"), tree.place, quoted=tree.quoted)


def _settled(value: Any) -> Any:
    try:
        return settle(value)
    except ValueError:
        raise _expected("numbers of fewer digits") from None


def _number(text: str, fraction: bool) -> int | float | None:
    """The finite number that a text spells, whole unless ``fraction``; None where it spells none."""
    if len(text) > _DIGITS:
        raise _expected(f"a number of at most {_DIGITS} characters")
    if re.fullmatch(r"0x[0-9a-fA-F]+|0o[0-7]+", text):
        number = int(text, 0)
    elif not _NUMBER.fullmatch(text):
        return None
    else:
        bare = text.replace("_", "")
        number = int(bare) if re.fullmatch(r"[-+]?\d+", bare) and not fraction else float(bare)
    if isinstance(number, float) and not math.isfinite(number):
        return None
    if fraction:
        return float(number) if number < _LARGEST or isinstance(number, float) else None
    if not -_LARGEST < number < _LARGEST:
        raise _expected("a whole number below 2^63")
    return int(number) if number == int(number) else None


def _expected(what: str) -> PydanticCustomError:
    return PydanticCustomError("as_meant", "expected {what}", {"what": what})


def _in_words(arms: list[Any], names: list[str], found: str) -> str:
    words = []
    if len(names) > _LISTED:
        words.append(f"one of {len(names)} names{did_you_mean(found, names, most=_MOST_LISTED)}")
    elif names:
        words.append(f"one of {', '.join(map(str, names))}" if len(names) > 1 else f"'{names[0]}'")
    kinds = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    words += [kinds[kind] for kind in (bool, int, float, str) if kind in arms and not (kind is int and float in arms)]
    words += ["a list such as [a, b]"] if any(get_origin(arm) is list for arm in arms) else []
    words += ["keys and values"] if any(get_origin(arm) is dict or _is_group(arm) for arm in arms) else []
    words += ["null"] if NoneType in arms else []
    return " or ".join(words)
