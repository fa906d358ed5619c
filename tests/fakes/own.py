"""A model of one's own whose loss under every mask is known: the oracle's toy rows as a function from ids to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracle import ToyRow, toy_row

MASK, TARGET = 9, 1
KINDS = [toy_row(4, 0), toy_row(3, 1), toy_row(4, 2)]


class TableModel:
    """Logits of two tokens whose cross-entropies are those of the toy row that the first token names.

    They follow ``theta`` as the oracle's do at its own values, to first order, so that both are exact there.
    """

    def __init__(self, kinds: list[ToyRow] = KINDS):
        self.tables = [torch.from_numpy(kind.table) for kind in kinds]
        self.sizes = [kind.size for kind in kinds]
        self.theta = torch.zeros(self.tables[0].shape[2] - 1, dtype=torch.float64, requires_grad=True)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        each = []
        for ids in input_ids:
            kind = int(ids[0]) - 2
            size = self.sizes[kind]
            code = int(((ids[1 : 1 + size] == MASK) * 2 ** torch.arange(size)).sum())
            entry = self.tables[kind][code]
            cost = entry[:, 0] + entry[:, 1:] @ self.theta
            # Of logits (other, 0) the second token has the cross-entropy log(1 + exp(other)).
            other = F.pad(torch.log(torch.expm1(cost)), (1, len(ids) - size - 1))
            each.append(torch.stack((other, torch.zeros_like(other)), -1))
        return torch.stack(each)


def table_rows(n: int, kinds: list[ToyRow] = KINDS) -> list[tuple[list[int], int]]:
    """n rows, the kinds in turn: the first token, which is the prompt, names the kind."""
    chosen = [i % len(kinds) for i in range(n)]
    return [([2 + kind, *[TARGET] * kinds[kind].size], 1) for kind in chosen]
