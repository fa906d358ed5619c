"""The files that this library adds to a checkpoint: the method, its density and, written last, a record of all files.

A checkpoint without its record was cut off while it was saved or deleted; one whose files differ from its record was
damaged. Neither is resumed from; a run resumes from its newest whole checkpoint.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState

from stabledllm.config.run_folder import STAMP
from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json, write_json
from stabledllm.training.parts import are_sound
from stabledllm.training.wholeness import STATE, files_of, first_difference, first_unreadable, missing_for_resuming

DENSITY = "p_of_t.json"
SCHEMA = "stabledllm/checkpoint/1"
_OWN = ("schema", "files", "parts")
"""Keys of the record that are not part of the identity."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, the identity of its run, and how its steps were made."""

    folder: Path
    identity: dict
    parts: list[dict]

    @property
    def step(self) -> int:
        """The number of optimizer steps done."""
        return step_of(self.folder)


def stamp(folder: Path, identity: dict, density: Path | None, parts: list[dict] | None = None) -> None:
    """Record a folder's files with their sizes and hashes; written last, the record says that the folder is whole."""
    if density is not None and density.resolve() != (folder / DENSITY).resolve():
        shutil.copyfile(density, folder / DENSITY)
    write_json(
        folder / STAMP, {"schema": SCHEMA, **identity, "parts": parts or [], "files": files_of(folder, apart=STAMP)}
    )


def last_whole(out: Path, say: Callable[[str], None] = lambda _: None, before: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None; each newer one that is not whole is reported to ``say``.

    Args:
        before: look only at those that this optimizer step, counted from 1, can be made from.
    """
    for folder in reversed([folder for folder in in_order(out) if before is None or step_of(folder) < before]):
        try:
            return read(folder)
        except UserError as error:
            say(f"passed over {error}")
    return None


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, verified.

    Raises:
        UserError: it is not whole; names the file, what was expected and what was found.
    """
    saved = _record(folder)
    problem = first_difference(folder, saved["files"]) if "files" in saved else first_unreadable(folder)
    if (problem := problem or missing_for_resuming(folder)) is not None:
        raise UserError(f"{folder}: {problem}.")
    _check_state(folder)
    identity = {key: value for key, value in saved.items() if key not in _OWN}
    return Checkpoint(folder, identity, saved.get("parts", []))


def damage(folder: Path) -> str | None:
    """A sentence on the first file of a saved model that differs from its record; None where none does."""
    try:
        saved = _record(folder)
    except UserError as error:
        return str(error)
    problem = first_difference(folder, saved.get("files", {}))
    return None if problem is None else f"{folder}: {problem}."


def remove(folder: Path) -> None:
    """Delete a checkpoint, its record first, so that what a kill leaves is never taken for a whole one."""
    if folder.is_dir():
        (folder / STAMP).unlink(missing_ok=True)
        shutil.rmtree(folder)


def rotate(out: Path, limit: int | None, keep: list[Path]) -> None:
    """Delete the oldest checkpoints down to ``limit``, never one of ``keep``; those without a record go first."""
    if not limit or limit < 0:
        return
    protected = {folder.resolve() for folder in keep}
    checkpoints = sorted(in_order(out), key=lambda folder: (folder / STAMP).is_file())
    spare = [folder for folder in checkpoints if folder.resolve() not in protected]
    for folder in spare[: max(0, len(checkpoints) - max(limit, len(protected)))]:
        remove(folder)


def step_of(folder: Path) -> int:
    """The step of a folder named ``checkpoint-STEP``."""
    return int(folder.name.split("-")[1])


def in_order(out: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not, the newest last."""
    paths = [path for path in out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]
    return sorted(paths, key=step_of)


def _record(folder: Path) -> dict:
    if not (folder / STAMP).is_file():
        raise UserError(f"{folder}: {STAMP}: expected the record that is written last, found nothing.")
    saved = read_json(folder / STAMP, SCHEMA)
    files, parts = saved.get("files", {}), saved.get("parts", [])
    sound = isinstance(files, dict) and all(
        isinstance(each, dict) and type(each.get("size")) is int and isinstance(each.get("sha256"), str)
        for each in files.values()
    )
    if not sound or not are_sound(parts):
        raise UserError(f"{folder}: {STAMP}: expected 'files' with sizes and hashes and 'parts', found them broken.")
    return saved


def _check_state(folder: Path) -> None:
    """Check the file that the Trainer reads first, which says at which step to go on."""
    try:
        step = TrainerState.load_from_json(str(folder / STATE)).global_step
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}: {STATE}: expected the Trainer's state, found something broken ({error}).") from None
    if step != step_of(folder):
        raise UserError(f"{folder}: {STATE}: expected step {step_of(folder)}, found {step!r}.")
