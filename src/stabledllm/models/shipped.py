"""The models that come with the package; loads no framework."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from stabledllm.errors import UserError, did_you_mean

SHIPPED = ("tiny", "tiny-mmada")
"""The reference model, for text, and a model of MMaDA's family that draws small scenes."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def shipped_folder(name: str) -> Path | None:
    """The folder of a shipped model; None for any other name."""
    return Path(str(files("stabledllm") / "assets" / name)) if name in SHIPPED else None


def check_name(name: str, kind: str = "model", built_in: Sequence[str] = SHIPPED, hint: str | None = None) -> None:
    """Refuse the name of a model that is no local folder, unless it ships or may be on the hub.

    Args:
        kind: what the error calls it. built_in: the names that ship. hint: the clause on
            the name that may be meant; without it, the nearest of these.

    Raises:
        UserError: neither, with the nearest name.
    """
    if name not in built_in and not _HUB_NAME.fullmatch(name):
        known = "".join(f"'{own}', " for own in built_in)
        hint = did_you_mean(name, built_in, most=0) if hint is None else hint
        raise UserError(
            f"{kind} '{name}': expected {known}a local folder or a hub's OWNER/NAME, found no such thing{hint}."
        )
