"""The image tokenizer, from images to codes and back, with MAGVIT-v2's weights: shipped, in a local folder or the hub.

Legend: B images, S side in pixels, N codes of an image, (S / downsampling)^2, row by row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.images.magvit import Magvit, MagvitConfig, Quantizer
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.families.config_values import check_numbers
from stabledllm.models.families.source import find_folder, read_config
from stabledllm.models.families.weights import compare_weights
from stabledllm.models.soundness import check_finite

BUILT_IN = "tiny-vq"
_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
_PIXELS = 2**20
"""Number of pixels decoded at a time: 16 images of side 256, half a GB for each activation at the published sizes."""


class ImageTokenizer:
    """A deterministic image tokenizer in float32: an image's codes do not depend on the rest of its batch.

    ``fingerprint``: 16 hex digits of the sizes and weights, the same for either kind of file. ``side``: the side in
    pixels that the weights were trained for; others work if ``downsampling`` divides them.
    """

    def __init__(self, model: Magvit, name: str, fingerprint: str):
        self.name = name
        self.fingerprint = fingerprint
        self.codebook_size = model.config.codebook_size
        self.downsampling = model.config.downsampling
        self.side = model.config.resolution
        self._model = model.eval().requires_grad_(False)

    def encode(self, images: np.ndarray) -> Tensor:
        """Codes on the CPU, int64, shape (B, N), of uint8 images, shape (B, S, S, 3) or one of (S, S, 3).

        Raises:
            UserError: an array of another dtype or shape, no square, or a side that ``downsampling`` does not divide.
        """
        self._check_images(images)
        pixels_BSS3 = torch.from_numpy(np.ascontiguousarray(images)).reshape(-1, *images.shape[-3:])
        # One at a time: kernels may round differently at other batch sizes, and a code depends on the sign of a sum.
        return self._chunks(self._codes, pixels_BSS3, 1)

    def decode(self, codes: Tensor) -> np.ndarray:
        """The images of codes: uint8, shape (B, S, S, 3), from whole numbers, shape (B, N), N a square number.

        Raises:
            UserError: a tensor of another dtype or shape, a number of codes that is no square, or a code outside the
                codebook.
        """
        self._check_codes(codes)
        pixels = codes.shape[1] * self.downsampling**2
        return self._chunks(self._images, codes.long(), max(1, _PIXELS // pixels)).numpy()

    def _codes(self, images_BSS3: Tensor) -> Tensor:
        pixels_B3SS = images_BSS3.permute(0, 3, 1, 2).float() / 127.5 - 1
        return self._model.quantize.codes(self._model.encoder(pixels_B3SS))

    def _images(self, codes_BN: Tensor) -> Tensor:
        pixels_B3SS = self._model.decoder(self._model.quantize.bits(codes_BN)).clamp(-1, 1)
        return ((pixels_B3SS + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)

    @torch.no_grad()
    def _chunks(self, function: Callable[[Tensor], Tensor], rows: Tensor, chunk: int) -> Tensor:
        device = self._model.quantize.power_vals.device
        # cuDNN's usual shortcuts (TF32, whichever kernel is fastest in a run) would flip bits now and then.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return torch.cat([function(part.to(device)).cpu() for part in rows.split(chunk)])

    def _check_images(self, images: np.ndarray) -> None:
        shape = images.shape
        if images.dtype != np.uint8 or len(shape) not in (3, 4) or shape[-1] != 3:
            found = f"{images.dtype} of shape {shape}"
            raise UserError(f"picture: expected uint8 of shape (S, S, 3) or (B, S, S, 3), found {found}.")
        height, width = shape[-3:-1]
        if height != width:
            raise UserError(f"picture: expected a square, found {height} x {width}.")
        if not height or height % self.downsampling:
            expected = f"a side that is a multiple of {self.downsampling}"
            raise UserError(f"picture: expected {expected}, found {height} x {width}.")

    def _check_codes(self, codes: Tensor) -> None:
        if codes.ndim != 2 or codes.is_floating_point() or codes.dtype == torch.bool:
            found = f"{str(codes.dtype).removeprefix('torch.')} of shape {tuple(codes.shape)}"
            raise UserError(f"codes: expected whole numbers of shape (B, N), found {found}.")
        count = codes.shape[1]
        if not count or math.isqrt(count) ** 2 != count:
            raise UserError(f"codes: expected a square number of them for a picture, found {count}.")
        outside = ((codes < 0) | (codes >= self.codebook_size)).nonzero()
        if len(outside):
            row, place = outside[0].tolist()
            found = f"{codes[row, place]} at place {place}"
            raise UserError(f"codes, row {row}: expected 0 to {self.codebook_size - 1}, found {found}.")


def load_image_tokenizer(name: str, device: str | torch.device = "cpu") -> ImageTokenizer:
    """The tokenizer of that name: ``tiny-vq``, a local folder or the hub's OWNER/NAME (``showlab/magvitv2``).

    Raises:
        UserError: no such name, an impossible size in ``config.json``, no weights, or weights of other sizes.
    """
    what = f"image tokenizer '{name}'"
    folder = Path(str(files("stabledllm") / "assets" / BUILT_IN))
    if name != BUILT_IN:
        folder = find_folder(name, "image tokenizer", (BUILT_IN,), (_PICKLE,))
    keys, where = read_config(folder), f"{what}: config.json"
    config, state = MagvitConfig.parse(keys, where), _read_weights(folder, what)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    check_numbers(keys, where, shapes)
    with as_user_error(f"{where}: expected sizes of which a model can be made"), torch.device("meta"):
        model = Magvit(config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    optional = {key for key in expected if key.startswith("quantize.")}
    compare_weights(shapes, what, expected, optional)
    buffers = Quantizer(config.z_channels).state_dict(prefix="quantize.")
    _check_buffers(state, buffers, what)
    model.load_state_dict(state | buffers, assign=True)
    check_finite(model, what)
    weights = {key: state[key] for key in sorted(expected.keys() - optional)}
    return ImageTokenizer(model.float().to(device), name, _fingerprint(config, weights))


def _read_weights(folder: Path, what: str) -> dict[str, Tensor]:
    """The tensors in a folder's file. MMaDA's tokenizer is published as a pickle only, read as plain tensors."""
    path = next((folder / name for name in (_SAFETENSORS, _PICKLE) if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{what}: expected {_SAFETENSORS} or {_PICKLE} in {folder}, found neither.")
    try:
        if path.name == _SAFETENSORS:
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own type
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: expected weights in {path.name}, found a broken file ({reason}).") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{what}: expected {path.name} to hold weights by their names, found something else.")
    return state


def _check_buffers(state: dict[str, Tensor], buffers: dict[str, Tensor], what: str) -> None:
    """Check that the buffers in a file, if any, have the architecture's own order of bits."""
    for key, value in buffers.items():
        if key in state and not torch.equal(state[key].double(), value.double()):
            raise UserError(f"{what}: expected {key} to put the first channel's bit highest, found other values.")


def _fingerprint(config: MagvitConfig, weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for key, value in weights.items():
        digest.update(f"{key} {value.dtype}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
