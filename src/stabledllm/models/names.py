"""What a model's name means on this machine, as far as names and files tell: it is loaded elsewhere, with torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stabledllm.config.run_folder import model_in
from stabledllm.errors import UserError, did_you_mean, nearest
from stabledllm.models.adapter_base import ADAPTER_CONFIG, base_of
from stabledllm.models.block_layouts import BLOCK_LAYOUTS, block_size_in
from stabledllm.models.new import pattern_of
from stabledllm.models.shapes import PUBLISHED
from stabledllm.models.shipped import SHIPPED, check_name, shipped_folder
from stabledllm.runtime.files import read_json
from stabledllm.runtime.offline import is_offline

if TYPE_CHECKING:
    from stabledllm.config.settings import TrainSettings

Trains = TypeVar("Trains", bound="TrainSettings")
CONFIG = "config.json"
_OF_A_RUN = "model"
"""The folder of the trained model within a run's folder."""
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w-][\w.-]*/[\w.-]+)")
"""The address of a model's page, whose last two parts are its name."""
_SHOWN = 4
"""Files of a folder without a model that a sentence names."""


def is_adapter(name: str) -> bool:
    """Whether a model's name is the folder of an adapter."""
    return (Path(name).expanduser() / ADAPTER_CONFIG).is_file()


def trained_block(name: str) -> int | None:
    """The block size that a model was trained with: one in a local folder, in a run's, or in this machine's copy of the
    hub's; None without one, and for any other name."""
    return block_size_in(_config_of(name))


def blocks_from_start(name: str) -> bool:
    """Whether the blocks of a model are counted from the row's first token, as those of the published layouts are."""
    return _config_of(pattern_of(name)).get("model_type") in BLOCK_LAYOUTS


def is_known_here(name: str) -> bool:
    """Whether files on this machine say what a model is, and so whether it has blocks of its own."""
    pattern = pattern_of(name)
    return shipped_folder(pattern) is not None or bool(_config_of(pattern))


def in_own_blocks(settings: Trains) -> Trains:
    """A run's settings in the blocks of its model where they name none, for layouts that are trained in nothing else.

    The reference model is trained in blocks or not, so that there the user says it.
    """
    config = {} if settings.block_size else _config_of(pattern_of(settings.model))
    if config.get("model_type") not in BLOCK_LAYOUTS:
        return settings
    size = block_size_in(config)
    names = ("decoding", "grpo") if settings.objective.kind == "grpo" else ("decoding",)
    changed = {name: getattr(settings, name).in_blocks_of(size) for name in names}
    return settings.model_copy(update={"block_size": size} | changed)


def _config_of(name: str) -> dict:
    """The config.json of a model, of an adapter's base or of a run's model, as far as it lies on this machine."""
    folder = Path(name).expanduser()
    if is_adapter(name):
        base = base_of(folder)
        return _config_of(base) if base else {}
    path = folder / CONFIG
    if not path.is_file() and _holds_model(folder / _OF_A_RUN):
        return _config_of(str(folder / _OF_A_RUN))
    found = path if path.is_file() else _in_cache(name)
    config = read_json(found) if found else {}
    return config if isinstance(config, dict) else {}


def check_model_name(name: str) -> None:
    """Refuse a name under which no model can be: nothing there, a file, or a folder without a model.

    A run's folder passes, as the model in it is meant; so does any name that may be on the hub.

    Raises:
        UserError: names what was found, and the nearest name of a model.

    >>> check_model_name("tny")
    Traceback (most recent call last):
    stabledllm.errors.UserError: model 'tny': expected 'tiny', 'tiny-mmada', a local folder or a hub's OWNER/NAME, ...
    """
    if not (named := pattern_of(name)).strip():
        raise UserError(f"model '{name}': expected new:tiny or new:FOLDER, found no name.")
    name = named
    if address := _ADDRESS.match(name):
        raise UserError(f"model '{name}': expected a hub's OWNER/NAME, found an address; write {address[1]}.")
    path = Path(name).expanduser()
    if shipped_folder(name):
        return
    if path.is_dir():
        model_in(name)  # refuses a run that has not ended
        _check_folder(name, path)
    elif path.exists():
        beside = f"; write {path.parent}" if _holds_model(path.parent) else ""
        raise UserError(f"model '{name}': expected a folder or a name, found a file{beside}.")
    elif name.endswith("/") and name.count("/") < 3 and not name.startswith((".", "/", "~")):
        raise UserError(f"model '{name}': expected a name or a folder that is there; write {name.rstrip('/')}.")
    elif _is_missing_here(name):
        raise UserError(
            f"model '{name}': expected a folder, found nothing there{did_you_mean(name, _beside(path), most=0)}."
        )
    else:
        near = [*SHIPPED, *PUBLISHED, *_beside(path)]
        ends = {one.rpartition("/")[2]: one for one in PUBLISHED}  # a name on the hub is often typed without its owner
        meant = nearest(name, near) or ends.get(nearest(name, ends) or "")
        check_name(name, hint=f" (did you mean '{meant}'?)" if meant else "")


def _check_folder(name: str, folder: Path) -> None:
    if _holds_model(folder) or _is_run(folder):
        return
    within = [f"{name.rstrip('/')}/{below.name}" for below in _folders(folder) if _holds_model(below) or _is_run(below)]
    files = sorted(entry.name for entry in folder.iterdir())
    found = ", ".join(files[:_SHOWN]) + (", ..." if files[_SHOWN:] else "") if files else "nothing"
    hint = f"; write {within[-1]}" if within else ""
    raise UserError(f"model '{name}': expected a folder with {CONFIG} or {ADAPTER_CONFIG}, found {found} in it{hint}.")


def _holds_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file()


def _is_run(folder: Path) -> bool:
    return _holds_model(folder / _OF_A_RUN)


def _is_missing_here(name: str) -> bool:
    """Whether a name is the path of a folder that is missing, rather than the hub's OWNER/NAME.

    Of two levels it is one where OWNER is a folder here, and the hub's copies on this machine have no such model.
    """
    owner, *below = name.split("/")
    if not below or owner in ("", ".", "..", "~") or len(below) > 1:
        return bool(below)
    if name in PUBLISHED or not (Path(owner).is_dir() and is_offline()):
        return False
    return _in_cache(name) is None


def _in_cache(name: str) -> Path | None:
    """The config.json of this machine's copy of the hub's model of that name."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        return None
    from huggingface_hub import try_to_load_from_cache  # seldom needed
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, CONFIG)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def _beside(path: Path) -> list[str]:
    """The models' folders beside a missing one, as they would be typed."""
    here = path.parent
    names = [below for below in _folders(here) if _holds_model(below) or _is_run(below)]
    return [below.name if here == Path() else str(here / below.name) for below in names]


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
