"""Checks that a folder that was written file by file is whole: every file that its record lists is there unchanged."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from stabledllm.runtime.folders import is_leftover

_BROKEN = (SafetensorError, zipfile.BadZipFile, ValueError, LookupError, TypeError, AttributeError, OSError, EOFError)
"""Exceptions that the readers of these files raise on a broken one."""

STATE, SCHEDULER = "trainer_state.json", "scheduler.pt"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*_fsdp_*", "global_step*", "*/adapter_model.*")
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")
_RANDOM = ("rng_state*.pth",)


def files_of(folder: Path, apart: str) -> dict[str, dict]:
    """``{name: {"size", "sha256"}}`` for every file below a folder but ``apart``, the record itself.

    Files that killed writers left are not listed, since they may be swept at any time.
    """
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != apart)
    files = sorted(path for path in paths if not is_leftover(path))
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }


def first_difference(folder: Path, files: dict) -> str | None:
    """The first difference of a folder from its record: the file, expected, found; None where it is whole.

    All sizes are compared before any content is read.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name}: expected a file, found nothing"
        if (found := path.stat().st_size) != expected["size"]:
            return f"{name}: expected {expected['size']} bytes, found {found}"
    for name, expected in files.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            return f"{name}: expected a file that can be read, found: {error.strerror}"
        if found != expected["sha256"]:
            return f"{name}: expected content with SHA-256 {expected['sha256'][:12]}..., found {found[:12]}..."
    return None


def missing_for_resuming(folder: Path) -> str | None:
    """The first file that a checkpoint lacks for a run to go on with the same bits; None where none is missing."""
    for name, what in ((STATE, "the Trainer's state"), (SCHEDULER, "the schedule of the learning rate")):
        if not (folder / name).is_file() and not (name == SCHEDULER and any(folder.glob("global_step*"))):
            return f"{name}: expected {what}, found nothing"
    for patterns, what in ((_WEIGHTS, "weights"), (_OPTIMIZER, "the optimizer's state"), (_RANDOM, "random states")):
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            return f"{patterns[0]}: expected {what}, found nothing"
    return None


def first_unreadable(folder: Path) -> str | None:
    """The first file that cannot be read in the format of its name, or None; for folders without recorded hashes.

    A ``.pt`` file holds checksums of its own; of safetensors only the header and the size can be checked.
    """
    for path in sorted(folder.rglob("*")):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as weights:
                    weights.keys()
            elif path.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(path) as archive:
                    if (broken := archive.testzip()) is not None:
                        return f"{path.name}: expected content that fits its checksums, found a broken part ({broken})"
            elif path.suffix == ".json":
                value = json.loads(path.read_text(encoding="utf-8"))
                if path.name.endswith(".index.json"):
                    for shard in sorted(set(value["weight_map"].values())):
                        if not (path.parent / shard).is_file():
                            return f"{shard}: expected a file, found nothing"
        except _BROKEN as error:
            return f"{path.name}: expected a file that can be read, found a broken one ({' '.join(str(error).split())})"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
