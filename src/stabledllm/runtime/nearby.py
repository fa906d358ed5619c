"""The file beside a missing one that may be meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stabledllm.errors import nearest


def nearby(path: Path, endings: Iterable[str] = ("",)) -> str:
    """The clause that names the file or folder beside a missing one whose name is most like it; empty for none.

    Names are compared without their endings, which are alike anyway.

    Args:
        endings: only files that end so.
    """
    here = path.parent
    names = sorted(entry.name for entry in here.iterdir()) if here.is_dir() else []
    names = [name for name in names if name.endswith(tuple(endings)) and not name.startswith(".")]
    stems: dict[str, str] = {}
    for name in names:
        stems.setdefault(name.partition(".")[0], name)
    if path.name.lower() in (low := {name.lower(): name for name in names}):
        found = low[path.name.lower()]
    else:
        found = stems.get(nearest(path.name.partition(".")[0], stems) or "")
    return f" (did you mean '{found if here == Path() else here / found}'?)" if found else ""
