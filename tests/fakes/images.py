"""Pictures, shards and a tokenizer made for the tests of images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIDE = 16


def picture(number: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Noise that differs by number."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """A picture's file."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers: range) -> dict[str, bytes]:
    """Members of a shard: pictures and captions of these numbers."""
    out = {}
    for i in numbers:
        out[f"{i:04d}.png"] = encoded(picture(i))
        out[f"{i:04d}.json"] = json.dumps({"prompt": f"picture {i}"}).encode()
    return out


def pairs(folder: Path, n: int) -> Path:
    """A folder of n pictures with captions beside them, ``00.png`` and ``00.txt`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i:02d}.png").write_bytes(encoded(picture(i)))
        (folder / f"{i:02d}.txt").write_text(f"picture {i}\n")
    return folder


class Patches:
    """The mean colour of 4 x 4 pixels, two bits a channel; counts the pictures that it encoded."""

    name, codebook_size, downsampling, side = "patches", 64, 4, SIDE

    def __init__(self, fingerprint: str = "f" * 64, stop_after: int | None = None):
        self.fingerprint, self.stop_after, self.seen = fingerprint, stop_after, 0

    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        assert pictures.dtype == np.uint8
        self.seen += len(pictures)
        if self.stop_after is not None and self.seen > self.stop_after:
            self.seen -= len(pictures)
            raise KeyboardInterrupt
        B, S = pictures.shape[:2]
        grid = pictures.reshape(B, S // 4, 4, S // 4, 4, 3).astype(float).mean((2, 4)).astype(np.int64) >> 6
        return torch.from_numpy(grid @ np.array([16, 4, 1])).reshape(B, -1)
