"""A, B and C by response length: groups of near-equal size, each as if its rows were measured alone."""

import torch

from stabledllm.lab.measure.by_length import by_length
from stabledllm.noise.methods import Method
from stabledllm.variance.components import Decomposition, decompose, nested_losses
from tests.fakes.laws import linear_law
from tests.fakes.meters import FakeMeter


def test_by_length_groups_rows():
    law = linear_law()
    nested = nested_losses(FakeMeter(law), Method(), rows=9, rates=4, masks=2, seed=0, design="iid")

    def parts(rows: torch.Tensor) -> Decomposition:
        return decompose(nested.select(rows))

    tokens = torch.tensor([5, 1, 9, 2, 8, 3, 7, 4, 6])
    groups = by_length(tokens, parts)
    assert [g["tokens"] for g in groups] == [[1, 3], [4, 6], [7, 9]]
    assert [g["n"] for g in groups] == [3, 3, 3]
    short = parts(tokens <= 3)
    assert groups[0]["data"]["value"] == short.data.value
    assert groups[0]["mask_rate"]["value"] == short.mask_rate.value
    assert [g["n"] for g in by_length(torch.full((9,), 7), parts)] == [9]
