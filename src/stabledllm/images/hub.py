"""The data set text-to-image-2M on the hub; each shard is downloaded only when it is needed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from stabledllm.errors import UserError
from stabledllm.images.image import CaptionedImage, Flaw
from stabledllm.images.shards import of_split
from stabledllm.runtime.offline import how_to_reach

REPOSITORY = "jackyhate/text-to-image-2M"
_FOLDER = "data_512_2M"
_SHARD = "data_{:06d}.tar"


class HubShards:
    """A source of the data set's images of 512 pixels, at the newest revision, or offline at the hub cache's."""

    splits = ("train", "validation", "test")
    seeded = False

    def items(self, split: str, seed: int) -> Iterator[CaptionedImage | Flaw]:
        return of_split(_shards(), split)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{REPOSITORY}@{_revision()}".encode()).hexdigest()

    def rows(self, split: str) -> None:
        return None


def _shards() -> Iterator[tuple[str, Path]]:
    from huggingface_hub import hf_hub_download

    revision = _revision()
    for file in _names(revision):
        try:
            path = hf_hub_download(REPOSITORY, file, repo_type="dataset", revision=revision)
        except Exception as error:  # each kind of failure has its own type, in this library and those below it
            _refuse(file, error)
        yield file.removeprefix(f"{_FOLDER}/"), Path(path)


def _revision() -> str:
    """The commit of the data set; without a network the hub's cache is asked for the commit's README."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(REPOSITORY, repo_type="dataset", allow_patterns=["README.md"])).name
    except Exception as error:  # as above
        _refuse("its revision", error)


def _names(revision: str) -> Iterator[str]:
    """The shards in their order.

    Where the hub cannot list them, their numbers are counted up; the first that does not exist is then an error, so
    that a part of the data is never taken for the whole.
    """
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(REPOSITORY, repo_type="dataset", revision=revision)
    except Exception:  # offline, or a hub that does not answer
        return (f"{_FOLDER}/{_SHARD.format(i)}" for i in itertools.count())
    return iter(sorted(file for file in files if file.startswith(f"{_FOLDER}/") and file.endswith(".tar")))


def _refuse(what: str, error: Exception) -> NoReturn:
    how = how_to_reach(f"the hub said: {_short(error)}")
    raise UserError(
        f"data 'text-to-image-2m': expected text-to-image-2m:PATH with local shards, or {what} of {REPOSITORY} in the "
        f"hub's cache, found neither, and {how}."
    ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
