"""What a data specification begins with: a task, a format, ``hub``, a kind of images, or a path. Loads no torch."""

from __future__ import annotations

import re
from pathlib import Path

from stabledllm.data.containers import ending_of
from stabledllm.data.formats import FORMATS
from stabledllm.errors import UserError, did_you_mean
from stabledllm.images.kinds import IMAGE_KINDS
from stabledllm.tasks.registry import TASKS

HUB, LINES, FILE = "hub", "jsonl", "file"
_ON_HUB = re.compile(r"(?:https?://huggingface\.co/datasets/|hf:(?://datasets/)?|huggingface:)([\w.-]+/[\w.-]+)")
KINDS = (*TASKS, LINES, *FORMATS, HUB, *IMAGE_KINDS)


def kind_of(spec: str) -> tuple[str, str]:
    """The kind of a specification and what it names; a bare path is of kind ``file``.

    Raises:
        UserError: an unknown kind.
    """
    kind, _, where = spec.partition(":")
    if kind in KINDS:
        return kind, where
    path = Path(spec).expanduser()
    if path.exists() or (":" not in spec and (ending_of(spec) or "/" in spec)):
        return FILE, spec
    raise UserError(
        f"data '{spec}': expected a known kind or the path of a file or folder, found the unknown kind "
        f"'{kind}'{_meant(spec, kind)}."
    )


def _meant(spec: str, kind: str) -> str:
    """The clause on what to write instead of an unknown kind: a file's whole name, nothing at all, or a known kind."""
    if kind.lower() in ("none", "no", "false", "off", "never", "0"):
        return "; data.validation_share=0 leaves validation rows out, data.test_rows=0 test rows"
    _, _, where = spec.partition(":")
    if kind.lower() in ("csv", "json", "parquet", "tsv", "file", "path", "local") and where:
        return f"; write {where}, as the file's ending tells what it is"
    if hub := _ON_HUB.match(spec):
        return f"; write hub:{hub[1]}"
    if "://" in spec:
        return "; data are read from files of this machine or from hub:OWNER/NAME"
    if several := several_meant(spec):
        return several
    files = sorted(entry.name for entry in Path().iterdir() if entry.name.partition(".")[0] == spec)
    return f"; write {files[0]}" if files and spec else did_you_mean(kind, KINDS)


def several_meant(spec: str) -> str:
    """The clause on what to write instead of a specification of several files; empty for any other."""
    names = list(map(Path, spec.split(",")))
    several = spec.startswith("[") or "*" in spec or (len(names) > 1 and all(map(ending_of, names)))
    return "; several files are named by the folder that holds them" if several else ""


def is_own(spec: str) -> bool:
    """Whether a specification names data in a known format: a file, a folder, or a data set of the hub."""
    return kind_of(spec)[0] in (FILE, LINES, HUB, *FORMATS)
