"""What a study's folder holds of finished work, in one small file, so that another machine goes on from it.

    python -m studies.finished pack runs/preference_rl studies/preference_rl/finished.tar.xz
    python -m studies.finished unpack studies/preference_rl/finished.tar.xz runs/preference_rl

Packed are the records of experiments and of finished runs, and the models named with --model. Checkpoints, drawn
responses and other models are not: a run that is not finished begins anew there.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

RECORDS = ("*.json", "*.jsonl")
DROPPED = ("checkpoint-", "rollouts", "model", "untuned")
"""Folders whose content is large or of runs that are not finished, by how their names begin."""
UNFINISHED = ("progress.json", "claim.json")


def main(words: Sequence[str] | None = None) -> int:
    """Pack a study's folder or unpack it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write FILE from a study's folder")
    packing.add_argument("folder", type=Path)
    packing.add_argument("file", type=Path)
    packing.add_argument("--model", action="append", default=[], help="a model's folder below FOLDER, kept too")
    unpacking = commands.add_parser("unpack", help="write what FILE has and the study's folder has not")
    unpacking.add_argument("file", type=Path)
    unpacking.add_argument("folder", type=Path)
    given = parser.parse_args(words)
    source = given.folder if given.command == "pack" else given.file
    if not source.exists():
        print(f"finished: expected {source}, found none.", file=sys.stderr)
        return 2
    if given.command == "pack":
        count = pack(given.folder, given.file, given.model)
        print(f"wrote {given.file}: {count} files, {given.file.stat().st_size / 1e6:.2f} MB")
    else:
        print(f"wrote {unpack(given.file, given.folder)} files into {given.folder}")
    return 0


def pack(folder: Path, file: Path, models: Sequence[str] = ()) -> int:
    """Write the records of what is finished below ``folder`` to ``file``; returns how many files."""
    paths = [*finished(folder), *(path for model in models for path in sorted((folder / model).rglob("*")))]
    with tarfile.open(file, "w:xz") as packed:
        for path in paths:
            if path.is_file():
                packed.add(path, path.relative_to(folder))
    return sum(path.is_file() for path in paths)


def finished(folder: Path) -> Iterator[Path]:
    """The records below a folder but those of runs that have not ended."""
    for path in sorted({path for pattern in RECORDS for path in folder.rglob(pattern)}):
        inside = path.relative_to(folder).parts
        if path.name in UNFINISHED or any(part.startswith(DROPPED) for part in inside[:-1]):
            continue
        run = path.parent
        if run.name.startswith("seed-") and not (run / "run.json").is_file():
            continue
        yield path


def unpack(file: Path, folder: Path) -> int:
    """Write what ``file`` has and ``folder`` has not; returns how many files. Nothing that is there is replaced."""
    count = 0
    with tarfile.open(file) as packed:
        for member in packed.getmembers():
            if not (folder / member.name).exists():
                packed.extract(member, folder, filter="data")
                count += 1
    return count


if __name__ == "__main__":
    sys.exit(main())
