"""Reads YAML without interpreting it: every scalar stays text, with its place, until its key says what it should be.

So a text key gets its text as typed, and a number is read alike from a recipe and from the command line; see
:mod:`stabledllm.config.typed`. YAML that could harm its reader is refused: tags, several documents, keys given twice,
and documents that are nested too deeply or that grow too large when aliases are written out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text

MOST_TEXT, MOST_DEPTH, MOST_NODES = 1_000_000, 40, 20_000
"""Limits: characters of a document, levels of nesting, and values with every alias written out."""
_NULLS = ("null", "Null", "NULL", "~", "")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BASES = {"0o": 8, "0x": 16}


class Written(str):
    """A scalar of YAML or of an override, as text.

    ``place``: its file and line. ``quoted``: it is text whatever it looks like. ``typed``: it comes from an override,
    which was not read as YAML.
    """

    place: str
    quoted: bool
    typed: bool

    def __new__(cls, text: str, place: str = "", *, quoted: bool = False, typed: bool = False):
        scalar = super().__new__(cls, text)
        scalar.place, scalar.quoted, scalar.typed = place, quoted, typed
        return scalar

    @property
    def null(self) -> bool:
        """Whether the text is YAML's null."""
        return not self.quoted and str(self) in _NULLS


def read_written(text: str, what: str) -> Any:
    """The document as dicts and lists of :class:`Written`; its keys are :class:`Written` as well.

    Raises:
        UserError: the text is no plain YAML document; names the line.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > MOST_TEXT:
        raise UserError(f"{what}: expected at most {MOST_TEXT:,} characters, found {len(text):,}.")
    try:
        events = _counted(yaml.parse(text, Loader=yaml.SafeLoader), what)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                return _Composer(events, what).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = plain_text(error.problem or error.context or "something else")
        raise UserError(f"{what}, line {mark.line + 1 if mark else 1}: expected YAML, {_in_words(problem)}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{what}, line {line}: expected YAML, found a control character.") from None
    return Written("", f"{what}, line 1")


def settle(value: Any) -> Any:
    """The written values as YAML 1.2's core schema reads them, for places where no key says what they should be.

    Raises:
        ValueError: a whole number of too many digits.
    """
    if isinstance(value, dict):
        return {str(key): settle(one) for key, one in value.items()}
    if isinstance(value, list):
        return [settle(one) for one in value]
    return _settled(value) if isinstance(value, Written) else value


def _settled(value: Written) -> Any:
    text = str(value)
    if value.quoted:
        return text
    if value.null:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text, _BASES.get(text[:2], 10))
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if _FLOAT.fullmatch(text) else text


def _in_words(problem: str) -> str:
    return problem if problem.startswith("found") else f"found a broken line ({problem})"


def _counted(events: Iterator[yaml.Event], what: str) -> Iterator[yaml.Event]:
    """The events, refused where they are nested too deeply, so that their reader can recurse safely."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise UserError(f"{what}, line {_line(event)}: expected at most {MOST_DEPTH} levels, found more.")
        yield event


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1


class _Composer:
    """Builds one document's value from its events."""

    def __init__(self, events: Iterator[yaml.Event], what: str):
        self.events, self.what = events, what
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.nodes = 0
        """Number of values so far, with every alias written out."""

    def document(self) -> Any:
        """The value, if it is the only document."""
        value = self._value(next(self.events))
        next(self.events)
        after = next(self.events)
        if isinstance(after, yaml.DocumentStartEvent):
            raise self._refused(after, "expected one document, found another")
        return value

    def _refused(self, event: yaml.Event, sentence: str) -> UserError:
        return UserError(f"{self.what}, line {_line(event)}: {sentence}.")

    def _count(self, event: yaml.Event, more: int = 1) -> None:
        self.nodes += more
        if self.nodes > MOST_NODES:
            raise self._refused(event, f"expected at most {MOST_NODES:,} values with its aliases written out")

    def _value(self, event: yaml.Event) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            raise self._refused(event, f"expected plain values, found the tag '{plain_text(event.tag)}'")
        before = self.nodes
        self._count(event)
        if isinstance(event, yaml.ScalarEvent):
            value = Written(event.value, f"{self.what}, line {_line(event)}", quoted=event.style is not None)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = [self._value(one) for one in iter(self._next, None)]
        else:
            value = self._mapping()
        if event.anchor:
            self.anchors[event.anchor] = (value, self.nodes - before)
        return value

    def _next(self) -> yaml.Event | None:
        """The next event of a collection, None at its end."""
        event = next(self.events)
        return None if isinstance(event, yaml.CollectionEndEvent) else event

    def _alias(self, event: yaml.AliasEvent) -> Any:
        if event.anchor not in self.anchors:
            raise self._refused(event, f"expected an anchor before its alias, found '*{plain_text(event.anchor)}'")
        value, size = self.anchors[event.anchor]
        self._count(event, size)
        return _copied(value)

    def _mapping(self) -> dict[Written, Any]:
        mapping: dict[Written, Any] = {}
        for event in iter(self._next, None):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refused(event, "expected a name as a key, found a list, a mapping or an alias")
            key = self._value(event)
            if key in mapping:
                first = next(earlier for earlier in mapping if earlier == key).place.rpartition("line ")[2]
                raise self._refused(event, f"expected each key once, found '{plain_text(key)}' again (line {first})")
            mapping[key] = self._value(next(self.events))
        return mapping


def _copied(value: Any) -> Any:
    """A copy of the value that an alias stands for, so that overriding one copy leaves the others as they are."""
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value
