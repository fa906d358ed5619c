"""The noisy and the clean row side by side in one forward, without the noisy blocks that carry no loss.

Legend: N rows, L positions, W positions of the noisy part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TwoCopies:
    """Where each position of a row lies in ``[noisy part | clean row]``.

    Nothing attends to a noisy block but itself, so that only those with masked tokens go through the model: a block
    without any, such as the prompt's, is the clean one.
    """

    noisy: Tensor
    """The positions in the row of the noisy part, int64, (N, W); any where ``noisy_blocks`` is -1."""
    noisy_blocks: Tensor
    """Their blocks, -1 beyond a row's own, int64, (N, W)."""
    clean_blocks: Tensor
    """The blocks of the clean row, -1 at padding, int64, (N, L)."""
    place: Tensor
    """The place of each position of the noisy row in the sequence, int64, (N, L)."""

    @classmethod
    def of(cls, masked: Tensor, block_ids: Tensor) -> TwoCopies:
        """The sequence for rows in which ``masked`` positions differ or carry loss, bool, (N, L).

        In a compiled graph, which must not depend on values, every block is kept.
        """
        kept = block_ids >= 0
        if not torch.compiler.is_compiling():
            blocks = int(block_ids.max()) + 1
            in_block = block_ids.new_zeros(len(masked), blocks + 1).scatter_add_(1, block_ids + 1, masked.long())
            kept = kept & (in_block.gather(1, block_ids + 1) > 0)
        width = kept.shape[1] if torch.compiler.is_compiling() else max(1, int(kept.sum(1).max()))
        noisy = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        real = kept.gather(1, noisy)
        own = torch.arange(kept.shape[1], device=kept.device)
        place = torch.where(kept, kept.cumsum(1) - 1, own + width)
        return cls(noisy, block_ids.gather(1, noisy).masked_fill(~real, -1), block_ids, place)

    @property
    def width(self) -> int:
        """W."""
        return self.noisy.shape[1]

    def joined(self, noisy_row: Tensor, clean_row: Tensor) -> Tensor:
        """The sequence of values of each position, (N, W + L)."""
        return torch.cat((noisy_row.gather(1, self.noisy), clean_row), dim=1)

    def mask(self) -> Tensor:
        """Noisy block b attends to itself and to the clean blocks before b, clean block b to the clean ones up to b.

        Bool, (N, 1, W + L, W + L), [n, 0, query, key]; every query attends to something.
        """
        noisy, clean = self.noisy_blocks[:, :, None], self.clean_blocks[:, :, None]
        noisy_key, clean_key = self.noisy_blocks[:, None, :], self.clean_blocks[:, None, :]
        before = (clean_key >= 0) & (clean_key < noisy)
        upper = torch.cat((noisy == noisy_key, before), dim=2)
        past = (clean == clean_key) | ((clean_key >= 0) & (clean_key < clean))
        lower = torch.cat((past.new_zeros(*past.shape[:2], self.width), past), dim=2)
        return torch.cat((upper, lower), dim=1)[:, None]
