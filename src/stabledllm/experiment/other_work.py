"""Refuses an ``out`` that holds another run or experiment, as far as settings alone tell; no framework is loaded.

What names stand for, such as the rows of a file or a model's weights, is compared where it is read: equal rows under
another name make no other run.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from stabledllm.config.changeable import FREE, FREE_OF_TRAINER, LEFT_OUT, allowed_among
from stabledllm.config.recipe import check
from stabledllm.config.run_folder import RUN, STAMP, TRAINED
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.experiment.check_list import Checks
from stabledllm.images.kinds import are_images
from stabledllm.models.names import in_own_blocks
from stabledllm.noise.names import read_parts
from stabledllm.runtime.files import read_json
from stabledllm.runtime.sameness import differences
from stabledllm.runtime.secrets import hidden

PLAN = "experiment.json"
"""The file that says which experiment a folder holds."""
_BEHIND = (
    *FREE,
    "model",
    "dpo",
    "grpo",
    "adaptive",
    "ppots",
    "p_of_t",
    "init_seed",
    "router",
    "decoding",
    "image_decoding",
    "clip",
)
"""Settings that change nothing, that name what is compared by its content, or that count in some runs only."""
_OF_DATA = (
    "format",
    "columns",
    "every_turn",
    "text_fields",
    "max_len",
    "max_prompt",
    "over_length",
    "few_shot",
    "seed",
)
"""Settings of the data that decide the rows' tokens and may be compared as they are."""


def checks_of_out(settings: TrainSettings | ExperimentSettings) -> Checks:
    """The check that ``out`` holds no other run or experiment; it reads every key."""
    is_run = isinstance(settings, TrainSettings)
    refuse = partial(refuse_other_run if is_run else refuse_other_experiment, settings)
    yield " ".join(type(settings).model_fields), refuse


def refuse_other_run(run: TrainSettings) -> None:
    """Refuse a run in a folder that holds another one, or an experiment.

    Raises:
        UserError: names the first key that differs, with both values.
    """
    out = Path(run.out).expanduser()
    if (out / PLAN).is_file():
        raise UserError(
            f"{out}: expected the folder of a run, or a new one, found an experiment's; take another 'out'."
        )
    found = _begun(out)
    if found is None or are_images(run.data.train):  # what an image model fills in is known when it is loaded
        return
    where, what, saved = found
    compared = differences(_comparable(saved, saved), _comparable(_settings_of(run), saved), absent=LEFT_OUT)
    allowed_among(compared, where, what, run.allow_changed)


def refuse_other_experiment(settings: ExperimentSettings) -> None:
    """Refuse an experiment in a folder that holds another one, or a run.

    Raises:
        UserError: names the first key that differs, with both values.
    """
    out = Path(settings.out).expanduser()
    path = out / PLAN
    if not path.is_file():
        if _begun(out) is not None:
            raise UserError(
                f"{out}: expected the folder of an experiment, or a new one, found a run's; take another 'out'."
            )
        return
    stored = read_json(path).get("settings", {})
    if are_images(settings.base.data.train) or not stored:
        return
    saved = check(stored, ExperimentSettings, str(path))  # keys that are newer than the folder get their defaults
    theirs, mine = (_settings_of(one.base) | {"equal": one.equal} for one in (saved, settings))
    for key, values in differences(_comparable(theirs, theirs), _comparable(mine, theirs)).differing.items():
        refuse_differing(path, key if key == "equal" else f"base.{key}", *values)


def refuse_differing(path: Path, key: str, theirs: Any, mine: Any) -> None:
    """Refuse an experiment that has another value of a key than the one that is there.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{path}: expected {key}={theirs!r} as in the experiment that is there, found {key}={mine!r}; start another "
        f"one with another 'out'."
    )


def _begun(out: Path) -> tuple[Path, str, dict] | None:
    """Where an earlier start recorded what it was, what is expected there, and the record; None where none did."""
    for name in (RUN, TRAINED):
        if (out / name).is_file():
            identity = _readable(out / name).get("identity")
            return out, "the run that is there", identity if isinstance(identity, dict) else {}
    stamps = sorted(out.glob(f"checkpoint-*/{STAMP}"), key=_steps)
    return (stamps[-1].parent, "to resume", _readable(stamps[-1])) if stamps else None


def _steps(stamp: Path) -> int:
    """The optimizer steps behind a checkpoint, by its folder's name; dates are those of the last copy."""
    steps = stamp.parent.name.rpartition("-")[2]
    return int(steps) if steps.isdecimal() else -1


def _readable(path: Path) -> dict:
    """The content of a record; empty where it is broken, which is told where the run goes on."""
    try:
        content = read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _settings_of(run: TrainSettings) -> dict:
    """A run's settings as its records hold them."""
    with suppress(UserError):  # which the check of the model tells
        run = in_own_blocks(run)
    return json.loads(json.dumps(hidden(run.model_dump(mode="json"))))


def _comparable(settings: dict, saved: dict) -> dict:
    """The part of a run's settings or identity that can be compared by its text; ``trainer`` as far as both name it.

    Args:
        saved: the record to compare with, which tells the keys of ``trainer`` that it knows.
    """
    data, trainer = settings.get("data"), settings.get("trainer") or {}
    out = {key: value for key, value in settings.items() if key not in (*_BEHIND, "data")}
    if isinstance(method := settings.get("method"), str):
        out["method"] = _canonical(method)
    if settings.get("steps") is not None or saved.get("steps") is not None:
        out.pop("epochs", None)
    if isinstance(lora := settings.get("lora"), dict):
        out["lora"] = {key: sorted(one, key=str) if isinstance(one, list) else one for key, one in lora.items()}
    if isinstance(data, dict):
        out["data"] = {key: data[key] for key in _OF_DATA if data.get(key) is not None}
    known = {key for key in saved.get("trainer") or {} if not key.startswith(FREE_OF_TRAINER)}
    return out | {"trainer": {key: value for key, value in trainer.items() if key in known}}


def _canonical(method: str) -> str:
    """A method's name with its parts in their order."""
    return "+".join(named.text for named in read_parts(method)) or method
