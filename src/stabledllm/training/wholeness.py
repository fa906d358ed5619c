"""Whether a folder that was written file by file is whole: what its record lists is there, byte for byte."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from stabledllm.runtime.folders import is_leftover

_BROKEN = (SafetensorError, zipfile.BadZipFile, ValueError, LookupError, TypeError, AttributeError, OSError, EOFError)
"""What the readers of these files raise on a broken one."""

STATE, SCHEDULER = "trainer_state.json", "scheduler.pt"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*_fsdp_*", "global_step*", "*/adapter_model.*")
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")
_RANDOM = ("rng_state*.pth",)


def listed(folder: Path, apart: str) -> dict[str, dict]:
    """``{name: {"size", "sha256"}}`` of every file below a folder but ``apart``, the record itself.

    What killed writers left is not part of it: it may be swept at any time.
    """
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != apart)
    files = sorted(path for path in found if not is_leftover(path))
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }


def flaw(folder: Path, files: dict) -> str | None:
    """The first thing in which a folder is not as its record lists it: file, expected, found; None where it is whole.

    Sizes are looked at before anything is read.
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
    """What a checkpoint lacks of all that a run needs to go on with the same bits; None where nothing is missing."""
    for name, what in ((STATE, "the Trainer's state"), (SCHEDULER, "the schedule of the learning rate")):
        if not (folder / name).is_file() and not (name == SCHEDULER and any(folder.glob("global_step*"))):
            return f"{name}: expected {what}, found nothing"
    for patterns, what in ((_WEIGHTS, "weights"), (_OPTIMIZER, "the optimizer's state"), (_RANDOM, "random states")):
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            return f"{patterns[0]}: expected {what}, found nothing"
    return None


def unreadable(folder: Path) -> str | None:
    """The first file that cannot be read as what its name says, where no hashes were recorded.

    A ``.pt`` holds checksums of its own; of weights only the header and the size can be checked.
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
