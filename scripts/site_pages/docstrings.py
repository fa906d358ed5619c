"""Docstrings as Markdown: roles become links, examples blocks of code, and every argument gets a line of its own."""

from __future__ import annotations

import re

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([\w.]+)`")
EXAMPLE = re.compile(r"(?m)^>>> .*(?:\n.+)*")
PAGE = re.compile(r"(?<![\w/])docs/(\w+)\.md(#[\w-]+)?")
ARGUMENTS = re.compile(r"(?m)^Args:\n(?:^    .*\n?)+")
LITERAL = re.compile(r"(?m)::$")


class Readable(griffe.Extension):
    """Rewrites every docstring of the package, once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Called by griffe when all modules are known, so that names can be resolved."""
        _rewrite(pkg)


def _rewrite(thing: griffe.Object) -> None:
    if thing.docstring:
        thing.docstring.value = readable(thing.docstring.value, thing)
    for member in thing.members.values():
        if not member.is_alias:
            _rewrite(member)


def readable(text: str, thing: griffe.Object) -> str:
    """The docstring of ``thing`` as Markdown."""
    if isinstance(thing, griffe.Function | griffe.Class) and (names := [p.name for p in thing.parameters]):
        text = ARGUMENTS.sub(lambda block: _each_alone(block[0], names), text)
    text = PAGE.sub(r"[\1](../\1.md\2)", text)
    text = ROLE.sub(lambda role: _link(role[1], thing), text)
    return LITERAL.sub(":", EXAMPLE.sub(lambda block: f"```pycon\n{block[0]}\n```", text))


def _each_alone(block: str, names: list[str]) -> str:
    """A section of arguments in which ``a, b: text. c: text`` is three entries."""
    known = "|".join(sorted(names, key=len, reverse=True))
    block = re.sub(rf"(?<=\.) (?=(?:{known})(?:, (?:{known}))*: )", "\n    ", block)
    return re.sub(rf"(?m)^    ((?:(?:{known}), )+)({known}): ", _shared, block)


def _shared(entry: re.Match[str]) -> str:
    """``a, b: `` as one entry that refers to the other, and the other."""
    others = entry[1].removesuffix(", ").split(", ")
    return "".join(f"    {name}: as `{entry[2]}`.\n" for name in others) + f"    {entry[2]}: "


def _link(name: str, thing: griffe.Object) -> str:
    """A link to a name as it is seen from ``thing``; the name as code if it is not shown."""
    for scope in (thing, thing.parent):
        try:
            path = scope.resolve(name) if scope is not None else ""
        except griffe.NameResolutionError:
            continue
        if _is_shown(path, thing):
            return f"[`{name}`][{path}]"
    return f"`{name}`"


def _is_shown(path: str, thing: griffe.Object) -> bool:
    """Whether a page shows the object of that path: it is public, of this package and has a docstring."""
    package, _, inner = path.partition(".")
    if package != thing.package.name or any(part.startswith("_") for part in inner.split(".")):
        return False
    try:
        return bool(thing.package[inner].docstring)
    except KeyError:
        return False
