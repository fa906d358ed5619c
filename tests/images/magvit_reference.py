"""MAGVIT-v2 once more, from the published sizes and names alone, by plain loops in float64: nothing of the library's.

``SMALL`` are sizes for tests under the keys of ``config.json``; with ``PUBLISHED``, the hub's ``showlab/magvitv2``.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

PUBLISHED = {
    "ch": 128,
    "encoder_ch_mult": [1, 2, 2, 4, 4],
    "encoder_num_res_blocks": [4, 3, 4, 3, 4],
    "decoder_ch_mult": [1, 1, 2, 2, 4],
    "decoder_num_res_blocks": [4, 4, 3, 4, 3],
    "z_channels": 13,
    "resolution": 256,
    "norm_groups": 32,
}
SMALL = {
    "ch": 8,
    "encoder_ch_mult": [1, 3, 2],
    "encoder_num_res_blocks": [2, 1, 2],
    "decoder_ch_mult": [1, 2, 4],
    "decoder_num_res_blocks": [1, 2, 1],
    "z_channels": 6,
    "resolution": 16,
    "norm_groups": 4,
}


def shapes(sizes: dict) -> dict[str, tuple[int, ...]]:
    """Every weight's name and shape, buffers included."""
    out: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inner: int, outer: int, kernel: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (outer, inner, kernel, kernel), (outer,)

    def norm(name: str, channels: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (channels,), (channels,)

    def block(name: str, inner: int, outer: int) -> None:
        norm(f"{name}.norm1", inner)
        conv(f"{name}.conv1", inner, outer, 3)
        norm(f"{name}.norm2", outer)
        conv(f"{name}.conv2", outer, outer, 3)
        if inner != outer:
            conv(f"{name}.nin_shortcut", inner, outer, 1)

    def middle(name: str, channels: int) -> None:
        block(f"{name}.block_1", channels, channels)
        norm(f"{name}.attn_1.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", channels, channels, 1)
        block(f"{name}.block_2", channels, channels)

    ch, bits, levels = sizes["ch"], sizes["z_channels"], len(sizes["encoder_ch_mult"])
    conv("encoder.conv_in", 3, ch, 3)
    width = ch
    for i in range(levels):
        for j in range(sizes["encoder_num_res_blocks"][i]):
            block(f"encoder.down.{i}.block.{j}", width, ch * sizes["encoder_ch_mult"][i])
            width = ch * sizes["encoder_ch_mult"][i]
        if i < levels - 1:
            conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
    middle("encoder.mid", width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", width, bits, 3)
    conv("encoder.quant_conv", bits, bits, 1)
    width = ch * sizes["decoder_ch_mult"][-1]
    conv("decoder.post_quant_conv", bits, bits, 1)
    conv("decoder.conv_in", bits, width, 3)
    middle("decoder.mid", width)
    for i in range(levels - 1, -1, -1):
        for j in range(sizes["decoder_num_res_blocks"][i]):
            block(f"decoder.up.{i}.block.{j}", width, ch * sizes["decoder_ch_mult"][i])
            width = ch * sizes["decoder_ch_mult"][i]
        if i > 0:
            conv(f"decoder.up.{i}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", width, 3, 3)
    out["quantize.embedding"], out["quantize.power_vals"] = (2**bits, bits), (bits,)
    return out


def random_weights(sizes: dict, seed: int = 0) -> dict[str, Tensor]:
    """Of a size that keeps activations around 1, so that a difference shows."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(sizes).items():
        if name.startswith("quantize."):
            continue
        fan_in = max(1, torch.Size(shape[1:]).numel())
        scale = 0.3 if len(shape) == 1 else 1.2 * fan_in**-0.5
        values = torch.randn(shape, generator=generator) * scale
        weights[name] = values + 1 if "norm" in name and name.endswith("weight") else values
    return weights


def buffers(sizes: dict) -> dict[str, Tensor]:
    """What the hub's file holds besides: each code's bits as -1 and 1, the highest first, and their powers of 2."""
    bits = sizes["z_channels"]
    rows = [[1.0 if code & (1 << (bits - 1 - k)) else -1.0 for k in range(bits)] for code in range(2**bits)]
    return {
        "quantize.embedding": torch.tensor(rows),
        "quantize.power_vals": torch.tensor([1 << (bits - 1 - k) for k in range(bits)]),
    }


def write(folder: Path, sizes: dict, state: dict[str, Tensor], kind: str) -> Path:
    """A checkpoint as a publisher lays it out: config.json, and weights as ``safetensors`` or ``bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "MAGViTv2"} | sizes))
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return folder


def conv(state: dict, name: str, x: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
    weight, bias = state[f"{name}.weight"].double(), state[f"{name}.bias"].double()
    x = torch.nn.functional.pad(x, (padding,) * 4)
    kernel = weight.shape[-1]
    height, width = ((side - kernel) // stride + 1 for side in x.shape[2:])
    out = bias.view(1, -1, 1, 1).repeat(len(x), 1, height, width)
    for i in range(kernel):
        for j in range(kernel):
            seen = x[:, :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
            out = out + torch.einsum("bihw,oi->bohw", seen, weight[:, :, i, j])
    return out


def norm(state: dict, name: str, x: Tensor, groups: int) -> Tensor:
    parts = []
    for part in x.chunk(groups, dim=1):
        mean = part.mean((1, 2, 3), keepdim=True)
        variance = ((part - mean) ** 2).mean((1, 2, 3), keepdim=True)
        parts.append((part - mean) / (variance + 1e-6) ** 0.5)
    weight, bias = (state[f"{name}.{kind}"].double().view(1, -1, 1, 1) for kind in ("weight", "bias"))
    return torch.cat(parts, dim=1) * weight + bias


def swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def block(state: dict, name: str, x: Tensor, groups: int) -> Tensor:
    h = conv(state, f"{name}.conv1", swish(norm(state, f"{name}.norm1", x, groups)), 1)
    h = conv(state, f"{name}.conv2", swish(norm(state, f"{name}.norm2", h, groups)), 1)
    return h + (conv(state, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in state else x)


def attention(state: dict, name: str, x: Tensor, groups: int) -> Tensor:
    h = norm(state, f"{name}.norm", x, groups)
    q, k, v = (conv(state, f"{name}.{part}", h).flatten(2) for part in "qkv")
    scores = torch.einsum("bci,bcj->bij", q, k) / x.shape[1] ** 0.5
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view(x.shape)
    return x + conv(state, f"{name}.proj_out", mixed)


def middle(state: dict, name: str, x: Tensor, groups: int) -> Tensor:
    x = block(state, f"{name}.block_1", x, groups)
    if f"{name}.attn_1.q.weight" in state:
        x = attention(state, f"{name}.attn_1", x, groups)
    return block(state, f"{name}.block_2", x, groups)


def encode(state: dict, sizes: dict, pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1], (B, 3, S, S), to the numbers whose signs are the bits, (B, Z, G, G)."""
    groups, levels = sizes["norm_groups"], len(sizes["encoder_ch_mult"])
    x = conv(state, "encoder.conv_in", pixels.double(), 1)
    for i in range(levels):
        for j in range(sizes["encoder_num_res_blocks"][i]):
            x = block(state, f"encoder.down.{i}.block.{j}", x, groups)
        if i < levels - 1:
            wider = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1, dtype=x.dtype)
            wider[:, :, :-1, :-1] = x
            x = conv(state, f"encoder.down.{i}.downsample.conv", wider, stride=2)
    x = middle(state, "encoder.mid", x, groups)
    x = conv(state, "encoder.conv_out", swish(norm(state, "encoder.norm_out", x, groups)), 1)
    return conv(state, "encoder.quant_conv", x)


def codes(z: Tensor) -> Tensor:
    """The code of each place, row by row, (B, G * G)."""
    return torch.tensor(
        [[int("".join("1" if v > 0 else "0" for v in place), 2) for place in picture.flatten(1).T] for picture in z]
    )


def decode(state: dict, sizes: dict, found: Tensor) -> Tensor:
    """Codes, (B, G * G), to pixels around [-1, 1], (B, 3, S, S)."""
    groups, bits, grid = sizes["norm_groups"], sizes["z_channels"], int(found.shape[1] ** 0.5)
    z = torch.zeros(len(found), bits, grid, grid, dtype=torch.float64)
    for b, row in enumerate(found.tolist()):
        for place, code in enumerate(row):
            for k, digit in enumerate(f"{code:0{bits}b}"):
                z[b, k, place // grid, place % grid] = 1 if digit == "1" else -1
    x = conv(state, "decoder.conv_in", conv(state, "decoder.post_quant_conv", z), 1)
    x = middle(state, "decoder.mid", x, groups)
    for i in reversed(range(len(sizes["decoder_ch_mult"]))):
        for j in range(sizes["decoder_num_res_blocks"][i]):
            x = block(state, f"decoder.up.{i}.block.{j}", x, groups)
        if i > 0:
            x = conv(state, f"decoder.up.{i}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), 1)
    return conv(state, "decoder.conv_out", swish(norm(state, "decoder.norm_out", x, groups)), 1)
