"""Named random streams, independent of each other: an extra draw in one never changes the numbers of another.

The Philox counter is (block of tokens, row position, optimizer step, stream | view << 8); nothing
depends on ranks, micro-batches or the order of calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from stabledllm.noise.philox import philox4x32


class Stream(IntEnum):
    """The purposes that numbers are drawn for.

    >>> Stream(4).name
    'MASK'
    """

    RATE = 1  # u of each row, or the common offset of a low-discrepancy step
    STRATUM = 2  # which strata get the remaining points
    PERMUTATION = 3  # which row gets which point
    MASK = 4  # one uniform per token and view
    DATA = 5  # the order of the training rows
    RESAMPLE = 6  # rows drawn with replacement when a variance is measured
    DECODING = 7  # which token is chosen
    DECODING_ORDER = 8  # which positions are decided first
    CAPTION = 9  # which rows lose their caption
    ATTENTION = 10  # which later tokens are seen while attention is annealed
    TOKENS = 11  # from which further tokens the masked ones are chosen


@dataclass(frozen=True)
class Key:
    """The seed (64 bits) and the optimizer step that a draw is a function of.

    >>> key = Key(seed=0, step=3)
    >>> key.row_uniforms(Stream.RATE, torch.tensor([5])) == key.row_uniforms(Stream.RATE, torch.arange(8))[5]
    tensor([True])
    """

    seed: int
    step: int

    def row_uniforms(self, stream: Stream, rows: Tensor, view: int = 0) -> Tensor:
        """One float64 uniform in (0, 1) per row position, with 52 random bits; shape of ``rows``."""
        return _to_uniform(self._words(stream, torch.zeros_like(rows), rows, view))

    def several(self, streams: tuple[Stream, ...], n: int, device: torch.device) -> Tensor:
        """The :meth:`row_uniforms` of several streams at positions 0 to n - 1 in one call, shape (streams, n)."""
        rows = torch.arange(n, device=device)
        kinds = torch.tensor([int(s) for s in streams], device=device)[:, None]
        return _to_uniform(philox4x32(0 * rows, rows, torch.tensor(self.step, device=device), kinds, self.seed))

    def token_uniforms(self, stream: Stream, rows: Tensor, token_index: Tensor, view: int = 0) -> Tensor:
        """One float64 uniform in (0, 1) per token, symmetric about 1/2; shape (B, L).

        Args:
            rows: position of each row in the step's global batch, shape (B,).
            token_index: index of each token in its unpadded row, shape (L,) or (B, L).
        """
        if token_index.dim() == 2:
            words = self._words(stream, token_index >> 2, rows[:, None], view)
            lane = (token_index & 3).expand(words.shape[:-1])
            return (words.gather(-1, lane[..., None])[..., 0].double() + 0.5) * 2.0**-32
        first, last = int(token_index.min()), int(token_index.max())
        blocks = torch.arange(first >> 2, (last >> 2) + 1, device=rows.device)
        words = self._words(stream, blocks[None, :], rows[:, None], view).flatten(1)
        return (words[:, token_index - ((first >> 2) << 2)].double() + 0.5) * 2.0**-32

    def permutation(self, stream: Stream, n: int, device: torch.device) -> Tensor:
        """A uniformly random permutation of ``range(n)``, shape (n,)."""
        parts = torch.arange(n, device=device).split(1 << 18)  # the generator's own tensors take ten times a part
        return torch.cat([self.row_uniforms(stream, part) for part in parts]).argsort(stable=True)

    def _words(self, stream: Stream, c0: Tensor, rows: Tensor, view: int) -> Tensor:
        step = torch.tensor(self.step, device=rows.device)
        return philox4x32(c0, rows, step, torch.tensor(int(stream) | view << 8, device=rows.device), self.seed)


def _to_uniform(words: Tensor) -> Tensor:
    """The uniform float64 in (0, 1) made of two of the four words."""
    # (k + 1/2) / 2**53 would round for large k; with 52 bits it is exact and never 0 or 1.
    bits = (words[..., 0] << 20) | (words[..., 1] >> 12)
    return (bits.to(torch.float64) + 0.5) * 2.0**-52
