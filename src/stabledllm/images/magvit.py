"""MAGVIT-v2's image tokenizer as Show-o and MMaDA use it: a convolutional encoder, look-up-free codes, a decoder.

Parameters carry the names of the hub's ``showlab/magvitv2``. Sources: arXiv:2310.05737 (look-up-free quantisation),
``showlab/Show-o`` (sizes). Legend: B images, C channels, S side in pixels, Z bits of a code, G side of the code grid.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabledllm.errors import UserError

_EPS = 1e-6


@dataclass(frozen=True)
class MagvitConfig:
    """The sizes of a model; the defaults are those of the published one, whose ``config.json`` gives none of them."""

    ch: int = 128
    encoder_ch_mult: tuple[int, ...] = (1, 2, 2, 4, 4)
    """Channels of each resolution, finest first, in units of ``ch``."""
    encoder_num_res_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_num_res_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    z_channels: int = 13
    """Bits of a code."""
    resolution: int = 256
    """Side in pixels that the weights were trained for; any multiple of the downsampling works."""
    norm_groups: int = 32
    mid_attention: bool = True
    """Attention over the whole grid at the coarsest resolution."""

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.encoder_ch_mult) - 1)

    @property
    def codebook_size(self) -> int:
        return 2**self.z_channels

    @classmethod
    def parse(cls, given: dict[str, Any], where: str) -> MagvitConfig:
        """The sizes in a ``config.json``; its other keys, such as the hub's own, are not read.

        Raises:
            UserError: a size of another type, lists of unlike length, or channels that the groups do not divide.
        """
        sizes = {f.name: _size(where, f.name, given[f.name], f.default) for f in fields(cls) if f.name in given}
        config = cls(**sizes)
        lists = {f.name: len(getattr(config, f.name)) for f in fields(cls) if isinstance(f.default, tuple)}
        if len(set(lists.values())) > 1:
            raise UserError(f"{where}: expected lists of one length, a number for each resolution, found {lists}.")
        if config.ch % config.norm_groups:
            raise UserError(f"{where}: expected ch a multiple of norm_groups {config.norm_groups}, found {config.ch}.")
        if config.resolution % config.downsampling:
            expected = f"a resolution that is a multiple of {config.downsampling}"
            raise UserError(f"{where}: expected {expected}, found {config.resolution}.")
        return config


def _size(where: str, key: str, value: Any, default: Any) -> Any:
    def whole(number: Any) -> bool:
        return type(number) is int and number > 0

    if isinstance(default, tuple):
        if isinstance(value, list) and value and all(map(whole, value)):
            return tuple(value)
        kind = "a list of whole numbers above 0"
    elif isinstance(default, bool):
        if isinstance(value, bool):
            return value
        kind = "true or false"
    else:
        if whole(value):
            return value
        kind = "a whole number above 0"
    raise UserError(f"{where}: expected {key} to be {kind}, found {value!r}.")


class Residual(nn.Module):
    """A residual block, x + conv(silu(norm(conv(silu(norm(x)))))); x is convolved (1 x 1) if the channels change."""

    def __init__(self, inner: int, outer: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inner, eps=_EPS)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outer, eps=_EPS)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return h_BCHW + (self.nin_shortcut(x_BCHW) if hasattr(self, "nin_shortcut") else x_BCHW)


class Attention(nn.Module):
    """Attention of one head among all places of the grid, added to its input."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=_EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        q, k, v = (part(h_BCHW).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x_BCHW + self.proj_out(mixed.transpose(1, 2).reshape(x_BCHW.shape))


class Middle(nn.Module):
    """The extra blocks of the coarsest resolution."""

    def __init__(self, channels: int, config: MagvitConfig):
        super().__init__()
        self.block_1 = Residual(channels, channels, config.norm_groups)
        self.attn_1 = Attention(channels, config.norm_groups) if config.mid_attention else nn.Identity()
        self.block_2 = Residual(channels, channels, config.norm_groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class Downsample(nn.Module):
    """A convolution that halves the side; its input is padded on the right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """A layer that doubles the side: every pixel is repeated four times, then convolved."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, then the layer to the next resolution, if there is one."""

    def __init__(self, inner: int, outer: int, blocks: int, groups: int, resample: str | None):
        super().__init__()
        self.block = nn.ModuleList(Residual(outer if i else inner, outer, groups) for i in range(blocks))
        self.resample = resample
        if resample:
            self.add_module(resample, {"downsample": Downsample, "upsample": Upsample}[resample](outer))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.block:
            x_BCHW = block(x_BCHW)
        return getattr(self, self.resample)(x_BCHW) if self.resample else x_BCHW


class Encoder(nn.Module):
    """The encoder, from pixels in [-1, 1], (B, 3, S, S), to one real number for each bit, (B, Z, G, G)."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        widths = [config.ch * m for m in config.encoder_ch_mult]
        last, blocks = len(widths) - 1, config.encoder_num_res_blocks
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(inner, outer, blocks[i], config.norm_groups, "downsample" if i < last else None)
            for i, (inner, outer) in enumerate(zip([config.ch, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1], config)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        h_BCHW = self.conv_in(pixels_B3SS)
        for level in self.down:
            h_BCHW = level(h_BCHW)
        h_BCHW = self.conv_out(F.silu(self.norm_out(self.mid(h_BCHW))))
        return self.quant_conv(h_BCHW)


class Decoder(nn.Module):
    """The decoder, from bits as -1 and 1, (B, Z, G, G), to pixels around [-1, 1], (B, 3, S, S)."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        widths = [config.ch * m for m in config.decoder_ch_mult]
        blocks = config.decoder_num_res_blocks
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        # Numbered from the finest resolution, as the encoder's levels are, but run from the coarsest.
        self.up = nn.ModuleList(
            Level(inner, outer, blocks[i], config.norm_groups, "upsample" if i else None)
            for i, (outer, inner) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True))
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z_BZGG: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(self.post_quant_conv(z_BZGG)))
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW)
        return self.conv_out(F.silu(self.norm_out(h_BCHW)))


class Quantizer(nn.Module):
    """The look-up-free quantizer: a code's bit k says whether channel k is above 0; the first channel's is highest."""

    def __init__(self, bits: int):
        super().__init__()
        place_Z = torch.arange(bits - 1, -1, -1)
        self.register_buffer("embedding", ((torch.arange(2**bits)[:, None] >> place_Z) & 1).float() * 2 - 1)
        self.register_buffer("power_vals", 2**place_Z)

    def codes(self, z_BZGG: Tensor) -> Tensor:
        """Codes of the channels' signs, int64, shape (B, G * G), row by row."""
        return ((z_BZGG.flatten(2).transpose(1, 2) > 0) * self.power_vals).sum(-1)

    def bits(self, codes_BN: Tensor) -> Tensor:
        """The bits of a square grid of codes as -1 and 1, shape (B, Z, G, G)."""
        side = round(codes_BN.shape[1] ** 0.5)
        return self.embedding[codes_BN].transpose(1, 2).unflatten(2, (side, side))


class Magvit(nn.Module):
    """The whole tokenizer model: encoder, quantizer and decoder under the hub's names."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.z_channels)
