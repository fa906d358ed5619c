"""Finds what an earlier start left in ``out``, and decides how the requested run goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabledllm.config.changeable import OF_THE_EVALUATION, allowed_among, is_under, refuse_unchangeable
from stabledllm.config.run_folder import MODEL, RUN, SCHEMA, TRAINED
from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json
from stabledllm.runtime.sameness import Differences
from stabledllm.training.checkpoints import Checkpoint, damage, last_whole
from stabledllm.training.identity import compare, identity_of_record

__all__ = ["MODEL", "RUN", "SCHEMA", "TRAINED", "Start", "find_start", "is_begun", "leave_behind"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """The point at which a run begins: step 0, a checkpoint, its evaluation (``trained``), or the end (``finished``).

    ``changed``: its coming steps have other settings than those so far.
    """

    finished: dict | None = None
    trained: dict | None = None
    checkpoint: Checkpoint | None = None
    changed: bool = False


def is_begun(out: Path) -> bool:
    """Whether the folder holds anything of an earlier start."""
    return (out / RUN).is_file() or (out / TRAINED).is_file() or any(out.glob("checkpoint-*"))


def find_start(out: Path, identity: dict, allowed: Sequence[str], defaults: dict[str, Any], say: Say) -> Start:
    """The start of a run, given what is in ``out``.

    Args:
        identity: of the requested run, with the content of its data.
        allowed: keys that may have another value than so far (``allow_changed``). defaults: of TrainingArguments.

    Raises:
        UserError: names the first key in which the run that is there differs; or there is no whole checkpoint.
    """
    refuse_unchangeable(allowed)
    for name in (RUN, TRAINED):
        if not (out / name).is_file():
            continue
        record = _record(out / name)
        compared = compare(identity_of_record(record, defaults), identity)
        if changed := allowed_among(compared, out, "the run that is there", allowed):
            why = f"its {changed[0]} is another now"
            return _at_checkpoint(out, identity, allowed, say, why, changed)
        _say_unknown(compared, out / name, say)
        if name == RUN:
            return Start(finished=record)
        saved = [MODEL, *(kept["model"] for kept in (record.get("averages") or {}).values())]
        if (broken := next(filter(None, map(damage, (out / name for name in saved))), None)) is not None:
            say(f"passed over {broken}")
            return _at_checkpoint(out, identity, allowed, say, "the model that it saved is damaged")
        return Start(trained=record)
    return _at_checkpoint(out, identity, allowed, say)


def leave_behind(out: Path) -> None:
    """Set aside the records of a run that now goes on: ``run.json`` becomes ``run-STEPS.json``."""
    if (out / RUN).is_file():
        steps = read_json(out / RUN, SCHEMA).get("steps")
        (out / RUN).replace(out / f"run-{steps}.json")
    (out / TRAINED).unlink(missing_ok=True)


def _record(path: Path) -> dict:
    """The content of ``run.json`` or ``trained.json``.

    Raises:
        UserError: it does not say what its run was.
    """
    record = read_json(path, SCHEMA)
    for key in ("identity", "config", "metrics", "versions"):
        if not isinstance(record.get(key), dict):
            raise UserError(f"{path}: expected an object under '{key}', found {type(record.get(key)).__name__}.")
    return record


def _at_checkpoint(
    out: Path, identity: dict, allowed: Sequence[str], say: Say, why: str | None = None, known: Sequence[str] = ()
) -> Start:
    """The start from the newest whole checkpoint, or from step 0 where there is none.

    Args:
        why: the reason why a checkpoint is needed, if it is.
        known: keys that differ from the run's record, which an older checkpoint may not hold.
    """
    checkpoint = last_whole(out, say)
    if checkpoint is None:
        if why:
            raise UserError(
                f"{out}: expected a whole checkpoint to go on from, since {why}, found none (save_every makes them); "
                f"take another 'out'."
            )
        say(f"{out}: no whole checkpoint is there; the run begins anew")
        return Start()
    compared = compare(checkpoint.identity, identity)
    changed = {*known, *allowed_among(compared, checkpoint.folder, "to resume", allowed)}
    _say_unknown(compared, checkpoint.folder, say)
    of_steps = [key for key in changed if not is_under(key, OF_THE_EVALUATION)]
    return Start(checkpoint=checkpoint, changed=bool(of_steps))


def _say_unknown(compared: Differences, where: Path, say: Say) -> None:
    if note := compared.told(where):
        say(note)
