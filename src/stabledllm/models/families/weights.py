"""The weights in a checkpoint's files, compared with those that the model expects before any is read.

Only the headers of the safetensors files are read: a wrong checkpoint is refused in a moment, whatever its size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import safe_open

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error
from stabledllm.runtime.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_NUMBER = re.compile(r"\d+")
_FEW = 10**6
_MANY = 16
"""How many times more numbers than its files a model may have; tied, shared and fused weights never come near that."""


@dataclass(frozen=True)
class HeldWeights:
    """Names and shapes of the weights in a folder's files, and whether these are pickled."""

    shapes: dict[str, tuple[int, ...]]
    pickled: bool = False


def held_weights(folder: Path, what: str, allow_pickle: bool = False) -> HeldWeights:
    """The weights that a model's folder holds; every file is there and whole.

    Args:
        what: begins the error messages. allow_pickle: also read PyTorch's own files, as plain tensors and nothing else.

    Raises:
        UserError: no weights, a shard that is missing, broken or outside of the folder, or pickled files only.
    """
    for single, index, pickled in ((SINGLE, INDEX, False), (PICKLED, PICKLED_INDEX, True)):
        if not (folder / single).is_file() and not (folder / index).is_file():
            continue
        if pickled and not allow_pickle:
            raise UserError(
                f"{what}: expected {SINGLE} or {INDEX} in {folder}, found pickled weights only; allow_pickle=true "
                f"reads them."
            )
        shapes: dict[str, tuple[int, ...]] = {}
        for file in _files(folder, what, single, index):
            shapes |= shapes_in(file, what)
        return HeldWeights(shapes, pickled)
    raise UserError(f"{what}: expected {SINGLE} or {INDEX} in {folder}, found neither.")


def shapes_in(file: Path, what: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in one file, of safetensors or of PyTorch's own.

    Raises:
        UserError: a broken file, or one that holds something else.
    """
    return _header(file, what) if file.suffix == ".safetensors" else _pickled_shapes(file, what)


def weight_files(folder: Path, what: str) -> list[Path]:
    """The safetensors files of a folder, whose weights :func:`held_weights` has listed."""
    return _files(folder, what, SINGLE, INDEX)


def compare_weights(
    found: Mapping[str, tuple[int, ...]], what: str, expected: Mapping[str, tuple[int, ...]], optional: set[str]
) -> None:
    """Check that the files hold every expected weight in its shape, and no other.

    Args:
        expected: name to shape. optional: names that may be absent, such as the second of two tied weights.

    Raises:
        UserError: a weight that is missing, unexpected or of another shape.
    """
    unexpected = {key for key in found.keys() - expected.keys() if not key.endswith("rotary_emb.inv_freq")}
    for kind, names in (("missing", expected.keys() - found.keys() - optional), ("unexpected", unexpected)):
        refuse_names(what, kind, names)
    _compare_shapes(found, what, expected)


def compare_known_weights(
    found: Mapping[str, tuple[int, ...]], what: str, expected: Mapping[str, tuple[int, ...]], prefix: str
) -> None:
    """Check the shapes of the weights that a transformers model and its files name alike, and their total size.

    transformers renames and fuses weights as it reads them, so only it can tell which ones are missing; but it would
    first allocate those of another shape, however large.

    Args:
        prefix: the name of the model's body, which the files may leave out or add.

    Raises:
        UserError: a weight of another shape, or a model far larger than its files.
    """
    names = {key: (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")) for key in found}
    same = {key: next((name for name in forms if name in expected), None) for key, forms in names.items()}
    _compare_shapes({name: found[key] for key, name in same.items() if name}, what, expected)
    needed, held = (sum(prod(shape) for shape in shapes.values()) for shapes in (expected, found))
    if needed > _MANY * held + _FEW:
        raise UserError(f"{what}: expected the {needed:,} numbers of its config in its weights, found {held:,}.")


def of_more_layers(unexpected: Iterable[str], expected: Iterable[str]) -> set[str]:
    """The unexpected weights whose names differ from expected ones only in their numbers: further layers or experts.

    A head that the model does not use may lie beside its weights; layers or experts beyond its config may not.
    """
    forms = {_NUMBER.sub("0", name) for name in expected}
    return {name for name in unexpected if _NUMBER.sub("0", name) in forms}


def refuse_names(what: str, kind: str, names: Iterable[str]) -> None:
    """Raise an error if any weights are missing or unexpected.

    Raises:
        UserError: naming the first.
    """
    names = sorted(map(str, names))
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"{what}: expected the weights of its config, found {kind} weight {names[0]}{more}.")


def _compare_shapes(found: Mapping[str, tuple], what: str, expected: Mapping[str, tuple]) -> None:
    for key in sorted(expected.keys() & found.keys()):
        if found[key] != expected[key]:
            raise UserError(
                f"{what}: expected weight {key} of shape {list(expected[key])} from its config, "
                f"found {list(found[key])}."
            )


def _header(file: Path, what: str) -> dict[str, tuple[int, ...]]:
    as_sentence = as_user_error(f"{what}: expected safetensors in {file.name}", "found a broken file")
    with as_sentence, safe_open(file, "pt") as opened:
        return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118


def _pickled_shapes(file: Path, what: str) -> dict[str, tuple[int, ...]]:
    with as_user_error(f"{what}: expected plain tensors in {file.name}", "found a broken or another file"):
        state = torch.load(file, map_location="meta", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise UserError(f"{what}: expected weights by their names in {file.name}, found something else.")
        return {str(key): tuple(value.shape) for key, value in state.items()}


def _files(folder: Path, what: str, single: str, index: str) -> list[Path]:
    if (folder / single).is_file():
        return [folder / single]
    stored = read_json(folder / index)
    shards = stored.get("weight_map") if isinstance(stored, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{what}: expected a weight_map in {index}, found none.")
    for name, shard in shards.items():
        # A file beside the index; a link in its place may lead anywhere, as in the hub's cache.
        plain = isinstance(shard, str) and shard == PurePosixPath(shard).name == PureWindowsPath(shard).name
        if not plain or shard in ("", "..", "."):
            raise UserError(f"{what}: expected a file beside {index} for weight {name}, found {shard!r}.")
    files = [folder / shard for shard in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{what}: expected the shard {file.name} that {index} names, found no such file.")
    return files
