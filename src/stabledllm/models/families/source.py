"""A model's files on this machine, and how they are to be loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stabledllm.errors import UserError
from stabledllm.models.families.config_values import check_form
from stabledllm.models.families.weights import HeldWeights
from stabledllm.models.shipped import SHIPPED, check_name
from stabledllm.runtime.files import read_json
from stabledllm.runtime.offline import how_to_reach

_PICKLES = ("*.bin", "*.bin.index.json")
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]


@dataclass(frozen=True)
class Source:
    """Where a model lies, what its config.json says, and how the user wants it.

    ``extra`` goes to ``from_pretrained`` (a quantisation, a device map). ``init_seed`` is set for a new model, whose
    weights are random and not read from files; else ``held`` lists the weights in the files.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    dtype: torch.dtype = torch.float32
    attention: str = "sdpa"
    trust_remote_code: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    init_seed: int | None = None
    held: HeldWeights | None = None

    @property
    def what(self) -> str:
        """The words that begin an error message about this model."""
        return f"model '{self.name}'"

    @property
    def config_file(self) -> Path:
        """The path of the model's config.json."""
        return self.folder / "config.json"

    @property
    def model_type(self) -> str | None:
        return self.config.get("model_type")


def find_folder(
    name: str,
    kind: str = "model",
    built_in: tuple[str, ...] = SHIPPED,
    more: tuple[str, ...] = (),
    allow_pickle: bool = False,
) -> Path:
    """The local folder of that name, or else the hub's snapshot of it.

    Args:
        kind: what error messages call it. built_in: the names that ship, for error messages. more: patterns of files
            to fetch besides the usual ones. allow_pickle: fetch PyTorch's own files too.

    Raises:
        UserError: neither exists; the message says how to get the files where the hub was not reachable.
    """
    what, folder = f"{kind} '{name}'", Path(name).expanduser()
    if not folder.is_dir():
        check_name(name, kind, built_in)
        folder = _snapshot(name, what, [*_PATTERNS, *more, *(_PICKLES if allow_pickle else ())])
    if not (folder / "config.json").is_file():
        raise UserError(f"{what}: expected {folder / 'config.json'}, found no such file.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The object in ``config.json``.

    Raises:
        UserError: no such file, another kind of content, or a key that would load files or code from elsewhere.
    """
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected an object, found {type(config).__name__}.")
    check_form(config, str(path))
    return config


def _snapshot(name: str, what: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError):
        how = how_to_reach("the hub could not be reached")
        raise UserError(
            f"{what}: expected a local folder or a copy in the hub's cache, found neither, and {how}."
        ) from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: expected a repository on the hub that may be read, found: {reason}") from None
