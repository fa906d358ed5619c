"""The noisy and the clean row side by side in one forward, without the noisy blocks that carry no loss.

Legend: N rows, L positions of a row, M sequences of the forward, C positions of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.models.bins import end_to_end

_Labels = tuple[Tensor, Tensor, Tensor]
"""Row, block and whether noisy, of the queries or of the keys."""


@dataclass(frozen=True)
class TwoCopies:
    """Where each position of the rows lies in sequences ``[noisy part | clean row]``; no row sees another.

    Nothing attends to a noisy block but itself, so that only those with masked tokens go through the model: a block
    without any, such as the prompt's, is the clean one. A sequence holds one row, or, packed, several end to end.

    >>> masked, blocks = torch.tensor([[False, False, True]]), torch.tensor([[0, 0, 1]])
    >>> copies = TwoCopies.of(masked, blocks)
    >>> copies.joined(torch.tensor([[7, 8, 0]]), torch.tensor([[7, 8, 9]]))
    tensor([[0, 7, 8, 9]])
    """

    token: Tensor
    """Which of the rows' N x L tokens each position of a sequence is, -1 at padding, int64, (M, C)."""
    noisy: Tensor
    """Whether it is of the noisy row, bool, (M, C)."""
    row: Tensor
    """Its row, -1 at padding, int64, (M, C)."""
    block: Tensor
    """Its block within the row, -1 at padding, int64, (M, C)."""
    place: Tensor
    """The place of each position of the noisy row among the M x C of the sequences, int64, (N, L); any at padding."""
    clean: Tensor
    """That of each position of the clean row, int64, (N, L); any at padding."""

    @classmethod
    def of(cls, masked: Tensor, block_ids: Tensor, *, packed: bool = False) -> TwoCopies:
        """The sequences for rows in which ``masked`` positions differ or carry loss, bool, (N, L).

        In a compiled graph, which must not depend on values, every block is kept.

        Args:
            block_ids: 0, 1, 2, ..., not decreasing, and -1 at padding, int64, (N, L).
            packed: lay rows end to end in sequences about as long as the longest row with its noisy part.
        """
        real, length = block_ids >= 0, block_ids.shape[1]
        kept = real if torch.compiler.is_compiling() else real & _in_masked_block(masked, block_ids)
        if packed:
            start, clean_start, (sequences, width) = _packed(kept, real)
        else:
            noisy = length if torch.compiler.is_compiling() else max([1, *kept.sum(1).tolist()])
            sequences, width = len(kept), noisy + length
            start = torch.arange(sequences, device=kept.device) * width
            clean_start = start + noisy
        place = start[:, None] + kept.cumsum(1) - 1
        clean = clean_start[:, None] + real.cumsum(1) - 1
        # Places that no token takes are one beyond the end.
        beyond, index = sequences * width, torch.arange(real.numel(), device=real.device)
        token = index.new_full((beyond + 1,), -1)
        token[clean.where(real, beyond).flatten()] = index
        token[place.where(kept, beyond).flatten()] = index
        token = token[:-1].view(sequences, width)
        is_noisy = torch.zeros(beyond + 1, dtype=torch.bool, device=real.device)
        is_noisy[place.where(kept, beyond).flatten()] = True
        return cls(
            token=token,
            noisy=is_noisy[:-1].view(sequences, width),
            row=token.div(length, rounding_mode="floor"),
            block=block_ids.flatten()[token.clamp(min=0)].masked_fill(token < 0, -1),
            place=place.where(kept, clean).clamp(min=0),
            clean=clean.clamp(min=0),
        )

    def joined(self, noisy_row: Tensor, clean_row: Tensor) -> Tensor:
        """The sequences of values of each position, (M, C), from those of the rows, (N, L); any at padding."""
        token = self.token.clamp(min=0)
        return torch.where(self.noisy, noisy_row.flatten()[token], clean_row.flatten()[token])

    def mask(self) -> Tensor:
        """Noisy block b attends to itself and to the clean blocks before b, clean block b to the clean ones up to b.

        Bool, (M, 1, C, C), [m, 0, query, key]; every query attends to something: padding to padding.
        """
        labels = (self.row, self.block, self.noisy)
        return _sees(tuple(x[:, :, None] for x in labels), tuple(x[:, None, :] for x in labels))[:, None]

    def block_mask(self) -> object:
        """The same mask for FlexAttention, whose kernels leave out what no query of a tile sees."""
        from torch.nn.attention.flex_attention import create_block_mask

        labels, (sequences, width) = (self.row, self.block, self.noisy), self.row.shape

        def sees(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return _sees(tuple(x[sequence, query] for x in labels), tuple(x[sequence, key] for x in labels))

        return create_block_mask(sees, B=sequences, H=None, Q_LEN=width, KV_LEN=width, device=str(self.row.device))


def _sees(query: _Labels, key: _Labels) -> Tensor:
    """Whether a query may see a key."""
    (row, block, noisy), (key_row, key_block, key_noisy) = query, key
    same = block == key_block
    clean = (key_block < block) | (same & ~noisy)
    return (row == key_row) & torch.where(key_noisy, same & noisy, clean)


def _in_masked_block(masked: Tensor, block_ids: Tensor) -> Tensor:
    """Whether each position's block holds a masked one, bool, (N, L); any at padding."""
    in_block = block_ids.new_zeros(len(masked), block_ids.shape[1] + 2)  # no row has more blocks than tokens
    in_block.scatter_add_(1, block_ids + 1, masked.long())
    return in_block.gather(1, block_ids + 1) > 0


@torch.compiler.disable
def _packed(kept: Tensor, real: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Where each row's noisy part and its clean row begin among the sequences' places, (N,), and (M, C)."""
    noisy = kept.sum(1)
    starts, shape = end_to_end((noisy + real.sum(1)).tolist())
    start = torch.tensor(starts, dtype=torch.int64, device=kept.device)
    return start, start + noisy, shape
