"""From the positions of padded rows to the response tokens of each, and back.

Legend: B responses, L positions of the longest row, T tokens of the longest response.
"""

from __future__ import annotations

from torch import Tensor, arange


def counted(maskable: Tensor) -> Tensor:
    """Which of T places hold a token of each response, bool, shape (B, T).

    Args:
        maskable: the response tokens of each row, bool, shape (B, L).

    >>> from torch import tensor
    >>> counted(tensor([[False, True, True], [False, False, True]]))
    tensor([[ True,  True],
            [ True, False]])
    """
    tokens = maskable.sum(1)
    return arange(int(tokens.max()), device=maskable.device) < tokens[:, None]


def by_token(values: Tensor, maskable: Tensor) -> Tensor:
    """The values of the response tokens in their order, 0 behind a response's end, shape (B, T).

    Args:
        values: of positions, shape (B, L). maskable: as in :func:`counted`.

    >>> from torch import tensor
    >>> by_token(tensor([[7, 8, 9], [4, 5, 6]]), tensor([[False, True, True], [False, False, True]]))
    tensor([[8, 9],
            [6, 0]])
    """
    places = counted(maskable)
    return values.new_zeros(places.shape).masked_scatter(places, values[maskable])


def by_position(values: Tensor, maskable: Tensor) -> Tensor:
    """The values of response tokens, shape (B, T), at their positions in the rows, 0 elsewhere; shape (B, L).

    >>> from torch import tensor
    >>> by_position(tensor([[8, 9], [6, 0]]), tensor([[False, True, True], [False, False, True]]))
    tensor([[0, 8, 9],
            [0, 0, 6]])
    """
    return values.new_zeros(maskable.shape).masked_scatter(maskable, values[counted(maskable)])
