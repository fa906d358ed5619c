"""``experiment.json``, which says which experiment a folder holds, so that no other is taken for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from stabledllm.config.changeable import FREE as FREE_OF_A_RUN
from stabledllm.config.recipe import check
from stabledllm.config.settings import ExperimentSettings
from stabledllm.data.bundle import DataBundle
from stabledllm.data.data_key import WITHOUT_EFFECT
from stabledllm.data.row_stream import RowStream
from stabledllm.errors import UserError
from stabledllm.experiment.other_work import PLAN, refuse_differing
from stabledllm.runtime.files import read_json, write_json
from stabledllm.runtime.provenance import versions
from stabledllm.runtime.secrets import hidden
from stabledllm.training.arguments import DEFAULTS
from stabledllm.training.identity import trainer_in_force

FREE = ("methods", "seeds", "learning_rates", "max_grad_norms", "standard_at", "out", "baselines")
"""Settings that may be extended or changed later."""
_VARIED = "varied"


def refuse_other(out: Path, settings: ExperimentSettings, data: DataBundle | None = None) -> None:
    """Refuse a folder that holds another experiment.

    Args:
        data: the experiment's rows, where they are loaded already; they are then compared too.

    Raises:
        UserError: names the first key that differs, with both values.
    """
    path = out / PLAN
    if not path.is_file():
        return
    stored = read_json(path)
    if stored.get(_VARIED, []) != (varied := _varied(settings)):  # values may be added; the folders of runs are others
        refuse_differing(path, _VARIED, stored.get(_VARIED, []), varied)
    # Keys that did not exist when the folder was begun get their defaults.
    saved_settings = check(stored.get("settings", {}), ExperimentSettings, str(path))
    # Rows may have another name and still be the same; their digest is compared below.
    named = tuple(f"base.data.{split}" for split in ("train", "validation", "test")) if "data" in stored else ()
    for key, mine, theirs in _differences(_deciding(settings), _deciding(saved_settings)):
        if key not in named:
            refuse_differing(path, key, theirs, mine)
    if data is not None and "data" in stored and stored["data"] != digest(data):
        raise UserError(
            f"{path}: expected the rows that the experiment there was begun on, found others: "
            f"base.data.train='{settings.base.data.train}', or what it or the model's tokenizer holds, is another now; "
            f"start another one with another 'out'."
        )


def claim(out: Path, settings: ExperimentSettings, data: DataBundle, say: Callable[[str], None]) -> bool:
    """Write which experiment the folder holds, unless it is written already; return whether this was the first time.

    Raises:
        UserError: the folder holds another experiment.
    """
    path = out / PLAN
    refuse_other(out, settings, data)
    if path.is_file():
        if changed := _changed_versions(read_json(path).get("versions", {})):
            say(f"note: {out} was begun with other versions of {changed}; it goes on")
        return False
    mine = {key: value for key, value in settings.model_dump().items() if key not in FREE}
    write_json(path, {"settings": mine, _VARIED: _varied(settings), "data": digest(data), "versions": versions()})
    return True


def _varied(settings: ExperimentSettings) -> list[str]:
    """The keys of the grid that are given."""
    return [key for key in ("learning_rates", "max_grad_norms") if getattr(settings, key)]


def digest(data: DataBundle) -> str:
    """A digest of the rows that are trained on, evaluated and tested."""
    hasher = hashlib.sha256()
    streamed = isinstance(data.train, RowStream)
    if streamed:  # which are known by their files
        hasher.update(f"streamed {data.digests['train']}\n".encode())
    for row in chain(() if streamed else data.train, data.validation):
        ids = np.asarray(row.input_ids, dtype=np.int64)
        hasher.update(f"{len(ids)} {row.prompt_length} {row.tail} {row.hidden}\n".encode())
        hasher.update(ids.tobytes())
        if given := getattr(row, "given", None):
            hasher.update(f"given {given}\n".encode())
    for example in data.test:
        content = {key: example[key] for key in ("messages", "caption", "gold", "task") if key in example}
        hasher.update(json.dumps(content, sort_keys=True, default=str).encode())
    return hasher.hexdigest()[:32]


def _deciding(settings: ExperimentSettings) -> dict:
    """The settings that decide the results of each run by itself, in the form in which our files hold them."""
    tree, base = settings.model_dump(mode="json", exclude=set(FREE)), settings.base
    run_keys = {key: value for key, value in tree["base"].items() if key not in FREE_OF_A_RUN}
    run_keys["data"] = {key: value for key, value in run_keys["data"].items() if key not in WITHOUT_EFFECT}
    return hidden(tree | {"base": run_keys | {"trainer": trainer_in_force(base, DEFAULTS)}})


def _changed_versions(before: dict[str, str]) -> str:
    now = versions()
    changed = [f"{name} ({old}, now {now.get(name, 'none')})" for name, old in before.items() if now.get(name) != old]
    return ", ".join(changed)


def _differences(mine: Any, theirs: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields the dotted keys at which two trees differ, with the value in each; None where a key is missing."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name in [*mine, *(theirs.keys() - mine.keys())]:
            yield from _differences(mine.get(name), theirs.get(name), f"{key}.{name}" if key else name)
    elif mine != theirs:
        yield key, mine, theirs
