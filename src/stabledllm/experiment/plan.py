"""``experiment.json``: which experiment a folder holds, so that no other is taken for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stabledllm.config.recipe import check
from stabledllm.config.settings import ExperimentSettings
from stabledllm.data.bundle import DataBundle
from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json, write_json
from stabledllm.runtime.provenance import versions
from stabledllm.runtime.secrets import hidden
from stabledllm.training.arguments import DEFAULTS
from stabledllm.training.identity import FREE as FREE_OF_A_RUN
from stabledllm.training.identity import trainer_in_force

PLAN = "experiment.json"
FREE = ("methods", "seeds", "out", "baselines")
"""What may be added or changed later."""


def refuse_other(out: Path, settings: ExperimentSettings, data: DataBundle | None = None) -> None:
    """Pass silently where the folder holds no experiment, or this one.

    Args:
        data: its rows too, where they are loaded already.

    Raises:
        UserError: the first key that differs, with both values.
    """
    path = out / PLAN
    if not path.is_file():
        return
    stored = read_json(path)
    # Keys that are newer than the folder had their defaults then.
    theirs = check(stored.get("settings", {}), ExperimentSettings, str(path))
    # The same rows are the same under another name; whether they are is seen below.
    named = tuple(f"base.data.{split}" for split in ("train", "validation", "test")) if "data" in stored else ()
    for key, found, expected in _differences(_deciding(settings), _deciding(theirs)):
        if key not in named:
            raise UserError(
                f"{path}: expected {key}={expected!r} as in the experiment that is there, found {key}={found!r}; "
                f"start another one with another 'out'."
            )
    if data is not None and "data" in stored and stored["data"] != digest(data):
        raise UserError(
            f"{path}: expected the rows that the experiment there was begun on, found others: "
            f"base.data.train='{settings.base.data.train}', or what it or the model's tokenizer holds, is another now; "
            f"start another one with another 'out'."
        )


def claim(out: Path, settings: ExperimentSettings, data: DataBundle, say: Callable[[str], None]) -> bool:
    """Note the experiment in its folder, unless it is there; whether this was the first time.

    Raises:
        UserError: the folder holds another one.
    """
    path = out / PLAN
    refuse_other(out, settings, data)
    if path.is_file():
        if told := _told(read_json(path).get("versions", {})):
            say(f"note: {out} was begun with other versions of {told}; it goes on")
        return False
    mine = {key: value for key, value in settings.model_dump().items() if key not in FREE}
    write_json(path, {"settings": mine, "data": digest(data), "versions": versions()})
    return True


def digest(data: DataBundle) -> str:
    """Of the rows as they are trained on, evaluated and tested."""
    found = hashlib.sha256()
    for row in [*data.train, *data.validation]:
        ids = np.asarray(row.input_ids, dtype=np.int64)
        found.update(f"{len(ids)} {row.prompt_length} {row.tail} {row.hidden}\n".encode())
        found.update(ids.tobytes())
    for example in data.test:
        kept = {key: example[key] for key in ("messages", "caption", "gold", "task") if key in example}
        found.update(json.dumps(kept, sort_keys=True, default=str).encode())
    return found.hexdigest()[:32]


def _deciding(settings: ExperimentSettings) -> dict:
    """What decides the results of an experiment's runs, each by itself, as a file of ours holds it."""
    tree, base = settings.model_dump(mode="json", exclude=set(FREE)), settings.base
    kept = {key: value for key, value in tree["base"].items() if key not in FREE_OF_A_RUN}
    return hidden(tree | {"base": kept | {"trainer": trainer_in_force(base, DEFAULTS)}})


def _told(before: dict[str, str]) -> str:
    now = versions()
    changed = [f"{name} ({old}, now {now.get(name, 'none')})" for name, old in before.items() if now.get(name) != old]
    return ", ".join(changed)


def _differences(mine: Any, theirs: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys at which two trees differ, with what stands in each; None where a key is missing."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name in [*mine, *(theirs.keys() - mine.keys())]:
            yield from _differences(mine.get(name), theirs.get(name), f"{key}.{name}" if key else name)
    elif mine != theirs:
        yield key, mine, theirs
