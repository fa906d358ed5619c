"""Compares two identities: the keys in which they differ, and those that an older one does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stabledllm.errors import UserError


@dataclass(frozen=True)
class Differences:
    """The differences between a saved and a wanted identity.

    ``differing``: ``{key: (saved, wanted)}``. ``unknown``: keys that one of the two does not have.
    """

    differing: dict[str, tuple[Any, Any]]
    unknown: list[str]

    def refuse(self, where: object, what: str, instead: str) -> None:
        """Raise unless nothing differs.

        Args:
            what: what is expected at ``where``. instead: what the user can do.

        Raises:
            UserError: names the first key that differs, both its values, and the other keys.
        """
        if not self.differing:
            return
        (key, (saved, wanted)), *others = self.differing.items()
        also = f" (different as well: {', '.join(other for other, _ in others[:5])})" if others else ""
        raise UserError(f"{where}: expected {what} with {key}={saved!r}, found {key}={wanted!r}{also}; {instead}.")

    def told(self, where: object) -> str | None:
        """A sentence on the keys that could not be compared; None where all were."""
        if not self.unknown:
            return None
        groups = ", ".join(dict.fromkeys(key.partition(".")[0] for key in self.unknown))
        return f"note: {where} was written by another version; not compared, since not all is recorded there: {groups}"


def differences(
    saved: dict, wanted: dict, named: Mapping[str, str] | None = None, absent: Mapping[str, Any] | None = None
) -> Differences:
    """The differences between two nested identities, in the order of ``wanted``.

    Args:
        named: keys that are mere names, with the key of the content they name: where the contents are equal, another
            name is no difference.
        absent: keys that an identity leaves out at one value, with that value; they are compared in every identity.
    """
    named = named or {}
    differing: dict[str, tuple[Any, Any]] = {}
    unknown: list[str] = []
    _walk(saved, wanted, "", absent or {}, differing, unknown)
    for name, behind in named.items():
        if name in differing and (same := _at(wanted, behind)) is not None and _at(saved, behind) == same:
            del differing[name]
    return Differences(differing, unknown)


def _walk(
    saved: dict, wanted: dict, prefix: str, absent: Mapping[str, Any], differing: dict, unknown: list[str]
) -> None:
    for key in [*wanted, *(key for key in saved if key not in wanted)]:
        name = f"{prefix}{key}"
        theirs, ours = (tree.get(key, absent.get(name)) for tree in (saved, wanted))
        if (key not in saved or key not in wanted) and name not in absent:
            # None is "not used", which an identity without the key says as well.
            if (ours if key in wanted else theirs) is not None:
                unknown.append(name)
        elif isinstance(theirs, dict) and isinstance(ours, dict):
            _walk(theirs, ours, f"{name}.", absent, differing, unknown)
        elif theirs != ours:
            differing[name] = (theirs, ours)


def _at(tree: dict, name: str) -> Any:
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
