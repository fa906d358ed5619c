"""The folder of a run: where its model lies, and the settings that it was trained with. Loads no framework."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from stabledllm.errors import UserError
from stabledllm.runtime.files import read_json

RUN, TRAINED, MODEL, STAMP, PROGRESS = "run.json", "trained.json", "model", "stabledllm.json", "progress.json"
SPIKES, REPLAYS = "spikes.jsonl", "replays"
SCHEMA = "stabledllm/run/1"
DIVERGED = "diverged"
_OF_A_MODEL = ("config.json", "adapter_config.json")
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_EXPERIMENT = "experiment.json"
MEASURED = {
    "decomposition": "decomposition.json",
    "preference_noise": "preference_noise.json",
    "policy_noise": "policy_noise.json",
}
"""What ``decompose`` writes and ``recommend`` reads: the file of each kind, which its schema names."""
_AGAIN = "run the command that trains it again"


@dataclass(frozen=True)
class Run:
    """A run whose model can be used.

    ``folder``: the run's own. ``model``: that of the weights (or of an adapter), below it. ``config``: every setting of
    the run, as ``run.json`` has them; empty where they were not kept. ``content``: digests of the rows of each split,
    likewise. ``notes``: what the user should know of it.
    """

    folder: Path
    model: Path
    config: dict[str, Any] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The path under which a user names it: the run's, or that of a checkpoint in it."""
        return str(self.folder if self.model.name == MODEL else self.model)


def run_of(name: str) -> Run | None:
    """The run that a model's name stands for: the folder of a run or of a checkpoint in it. None for any other name.

    ``RUN/model`` is no run but the model alone, which brings no settings.

    Raises:
        UserError: a run that has not ended or left no model, with what to do; or the folder of an experiment.
    """
    folder = _folder(name)
    if folder is None or _is_model(folder):
        return _of_checkpoint(folder) if folder is not None else None
    record = next((read_json(folder / each, SCHEMA) for each in (RUN, TRAINED) if (folder / each).is_file()), None)
    is_whole = (folder / MODEL / STAMP).is_file()
    if record is not None:
        if not is_whole:
            raise UserError(f"model '{name}': {_without_model(folder, record)}.")
        content = _object(record, "identity", "data", "content")
        return Run(folder, folder / MODEL, _object(record, "config"), content, _notes(folder, record))
    checkpoints = _checkpoints(folder)
    if checkpoints or (folder / PROGRESS).is_file() or any(folder.glob("run-*.json")):
        raise UserError(f"model '{name}': {_unfinished(folder, checkpoints)}.")
    if (folder / _EXPERIMENT).is_file():
        raise UserError(f"model '{name}': {_of_experiment(folder)}.")
    return Run(folder, folder / MODEL) if is_whole else None


def is_of_run(name: str) -> bool:
    """Whether a model's name is the folder of a run, whatever its state, or of a checkpoint in one."""
    try:
        return run_of(name) is not None
    except UserError:
        return True


def is_model_folder(name: str) -> bool:
    """Whether a name is that of a local folder with a model, or of a run, whatever its state."""
    folder = _folder(name)
    return folder is not None and (_is_model(folder) or is_of_run(name))


def refuse_record(name: str, tree: dict[str, Any]) -> None:
    """Refuse a file that this library wrote in the place of a recipe.

    Raises:
        UserError: it is one.
    """
    if (schema := str(tree.get("schema", ""))).startswith("stabledllm/"):
        folder = Path(name).expanduser().parent
        meant = model_meant(str(folder)) or f"; 'stabledllm report {folder}' shows what is in it"
        raise UserError(f"recipe '{name}': expected a recipe, found a record of '{schema}'{meant}.")


def model_meant(name: str) -> str:
    """The clause on what a folder in the place of a recipe may be meant as; empty for any other name.

    A model and a run are named by ``model``; what was measured is read by ``recommend``; an experiment goes on with its
    recipe.
    """
    if (folder := _folder(name)) is not None and (folder / _EXPERIMENT).is_file():
        return "; that is the folder of an experiment, which goes on with the recipe that it began with"
    if folder is not None and any((folder / each).is_file() for each in MEASURED.values()):
        return f"; what was measured there is read by 'stabledllm recommend --from {name}'"
    is_shipped = bool(name) and "/" not in name and (files("stabledllm") / "assets" / name / _OF_A_MODEL[0]).is_file()
    return f"; a model is named by model={name}" if is_shipped or is_model_folder(name) else ""


def run_behind(model: str) -> Run | None:
    """The run that made a model, given as :func:`run_of` takes it, as ``RUN/model`` or as an average of its weights.

    None where none is known.
    """
    folder = _folder(model)
    of_run = folder is not None and (folder.name == MODEL or folder.name.startswith(f"{MODEL}-"))
    if of_run and (folder / STAMP).is_file():
        has_ended = any((folder.parent / each).is_file() for each in (RUN, TRAINED))
        return run_of(str(folder.parent)) if has_ended else None
    return run_of(model)


def model_in(name: str) -> str:
    """The name of a model; for the folder of a run, the path of the model in it.

    Raises:
        UserError: the same as :func:`run_of`.
    """
    run = run_of(name)
    return name if run is None else str(run.model)


def _folder(name: str) -> Path | None:
    """The local folder of that name; None where there is none, or where a shipped model is meant."""
    try:
        folder = Path(name).expanduser()
        shipped = "/" not in name and (files("stabledllm") / "assets" / name).is_dir()
        return folder if name and not shipped and folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, the home of nobody
        return None


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _OF_A_MODEL)


def _of_checkpoint(folder: Path) -> Run | None:
    if not (_CHECKPOINT.fullmatch(folder.name) and (folder / STAMP).is_file()):
        return None
    stamp = read_json(folder / STAMP)
    parts = stamp.get("parts")
    config = _object(parts[-1], "config") if isinstance(parts, list) and parts and isinstance(parts[-1], dict) else {}
    home = folder.parent
    if not config and (home / RUN).is_file():  # older checkpoints do not hold their settings
        config = _object(read_json(home / RUN, SCHEMA), "config")
    return Run(home, folder, config, _object(stamp, "data", "content"))


def _object(record: dict, *keys: str) -> dict:
    """The object that stands below these keys, one within the other; an empty one where there is none."""
    for key in keys:
        record = value if isinstance(value := record.get(key), dict) else {}
    return record


def _notes(folder: Path, record: dict) -> list[str]:
    if record.get("status") == DIVERGED:
        step = _object(record, DIVERGED).get("step")
        return [f"note: {folder} diverged at step {step}; its model has the last finite weights"]
    return []


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were saved as a whole, the newest last."""
    paths = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted((p for p in paths if (p / STAMP).is_file()), key=lambda path: int(path.name.split("-")[1]))


def _unfinished(folder: Path, checkpoints: list[Path]) -> str:
    if not checkpoints:
        return (
            f"expected a run that has ended, found one in {folder} without a model or a checkpoint yet; let it end, or "
            f"{_AGAIN} (with save_every it keeps checkpoints on the way)"
        )
    return (
        f"expected a run that has ended, found one that has not; let it end, or {_AGAIN} to finish it, or name its "
        f"last checkpoint, {checkpoints[-1]}"
    )


def _without_model(folder: Path, record: dict) -> str:
    checkpoints = _checkpoints(folder)
    instead = f"name its last checkpoint, {checkpoints[-1]}" if checkpoints else ""
    if record.get("status") == DIVERGED:
        step = _object(record, DIVERGED).get("step")
        instead = instead or "train anew in another 'out', with a lower trainer.learning_rate"
        return f"expected a run with a model, found one that diverged at step {step} and kept none; {instead}"
    return (
        f"expected the run's model in {folder / MODEL}, found none that is whole; remove {folder / RUN} and {_AGAIN}"
        f"{f', or {instead}' if instead else ''}"
    )


def _of_experiment(folder: Path) -> str:
    runs = sorted(path.parent for path in folder.glob(f"runs/*/*/{RUN}"))
    instead = f"name one of its {len(runs)} runs, such as {runs[0]}" if runs else "none of its runs has ended yet"
    return f"expected one run, found the folder of an experiment; {instead}"
