"""What decides the rows that data settings give: the key under which tokenised rows are stored, never to be stale."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import stabledllm
from stabledllm.config.settings import DataSettings
from stabledllm.data.containers import ENDINGS
from stabledllm.data.images import are_images
from stabledllm.data.kinds import kind_of
from stabledllm.data.reading import FileState
from stabledllm.data.sources import source_of
from stabledllm.tasks.examples import Examples
from stabledllm.tasks.registry import MADE, TASKS
from stabledllm.tasks.text_files import files_below

WITHOUT_EFFECT = {"cache", "workers"}
"""Data settings that change no row."""
_DECIDING_CODE = ("data", "tasks", "models", "noise")
_LIBRARIES = ("stabledllm", "transformers", "tokenizers", "jinja2", "datasets", "pyarrow")
_digests: dict[FileState, str] = {}


def stored_files(spec: str, split: str, settings: DataSettings) -> list[Path] | None:
    """The files that a specification is read from; None for data that are made, and tasks that the hub holds."""
    kind, where = kind_of(spec)
    if kind == "hub":
        return source_of(spec, split, settings).paths or None
    if are_images(spec) or kind in MADE or not where:
        return None
    path = Path(where).expanduser()
    if path.is_dir():
        return sorted({*files_below(path, ENDINGS), *files_below(path, [".txt"])}) or None
    if not path.is_file():
        return None
    beside = [path.parent / name for name in TASKS[kind].beside] if kind in TASKS else []
    return sorted({path, *(file for folder in beside if folder.is_dir() for file in files_below(folder, ENDINGS))})


def state_of(path: Path) -> FileState:
    """What tells whether a file is still the same, without reading it."""
    status = path.stat()
    return FileState(str(path), status.st_size, status.st_mtime_ns)


def specs_of(settings: DataSettings) -> dict[str, str]:
    """The specifications of the splits that are given."""
    specs = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    return {split: spec for split, spec in specs.items() if spec}


def data_key(settings: DataSettings, load: Callable[[str, str], Examples]) -> str:
    """A digest of the data's files, the settings that choose from them, and the code and libraries that read them.

    Args:
        load: gives the examples of a specification and split that is read from no files: they count by content.
    """
    content = {}
    for split, spec in specs_of(settings).items():
        files = stored_files(spec, split, settings)
        content[split] = (
            [json.dumps(example, sort_keys=True, default=str) for example in load(spec, split)]
            if files is None
            else [[str(path), _file_digest(state_of(path))] for path in files]
        )
    key = {
        "settings": {k: v for k, v in settings.model_dump().items() if k not in WITHOUT_EFFECT | {"image"}},
        "content": content,
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def _file_digest(state: FileState) -> str:
    if state not in _digests:
        with open(state.path, "rb") as file:
            _digests[state] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[state]


@cache
def _code_digest() -> str:
    digest, home = hashlib.sha256(), Path(stabledllm.__file__).parent
    for package in _DECIDING_CODE:
        for path in sorted((home / package).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(f"Unicode {unicodedata.unidata_version}\n".encode())  # Python's: which questions are alike
    for name in _LIBRARIES:
        try:
            digest.update(f"{name} {version(name)}\n".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()
