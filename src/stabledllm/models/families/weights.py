"""What a checkpoint's files hold, compared with what the model expects, before any weight is read.

Only the headers of the safetensors files are read: a wrong checkpoint is refused in a moment, whatever its size.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from stabledllm.errors import UserError
from stabledllm.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_weights(folder: Path, name: str, expected: dict[str, tuple[int, ...]], optional: set[str]) -> None:
    """Every expected weight is there in its shape, and no other.

    Args:
        expected: name to shape. optional: names that may be absent, such as the second of two tied weights.

    Raises:
        UserError: no weights, a missing or broken shard, a weight that is missing, unexpected or of another shape.
    """
    compare_weights(_headers(folder, name), f"model '{name}'", expected, optional)


def compare_weights(
    found: dict[str, tuple[int, ...]], what: str, expected: dict[str, tuple[int, ...]], optional: set[str]
) -> None:
    """As :func:`check_weights`, of the names and shapes ``found``; ``what`` opens the sentence.

    Raises:
        UserError: a weight that is missing, unexpected or of another shape.
    """
    for kind, names in (
        ("missing", expected.keys() - found.keys() - optional),
        ("unexpected", {key for key in found.keys() - expected.keys() if not key.endswith("rotary_emb.inv_freq")}),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{what}: expected the weights of its config, found {kind} weight {min(names)}{more}.")
    for key in sorted(expected.keys() & found.keys()):
        if found[key] != expected[key]:
            raise UserError(
                f"{what}: expected weight {key} of shape {list(expected[key])} from its config, "
                f"found {list(found[key])}."
            )


def _headers(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in _files(folder, name):
        if not file.is_file():
            raise UserError(f"model '{name}': expected the shard {file.name} that {INDEX} names, found no such file.")
        try:
            with safe_open(file, "pt") as opened:
                names = opened.keys()
                found |= {key: tuple(opened.get_slice(key).get_shape()) for key in names}
        except SafetensorError as error:
            raise UserError(
                f"model '{name}': expected safetensors in {file.name}, found a broken file ({error})."
            ) from None
    return found


def _files(folder: Path, name: str) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise UserError(f"model '{name}': expected {SINGLE} or {INDEX} in {folder}, found neither.")
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"model '{name}': expected a weight_map in {INDEX}, found none.")
    return [folder / shard for shard in sorted(set(shards.values()))]
