"""The projection: unbiased for inner products, block by block, the same at every call; and what it costs in error."""

from __future__ import annotations

import pytest
import torch

from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.sketch import ProjectedGradients, Sketch, block_products
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.checks.statistics import assert_mean
from tests.fakes.tiny import metered, model, rows


def test_inner_products_are_unbiased_and_as_noisy_as_theory_says():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    y += x
    found = []
    for seed in range(400):
        both = Sketch({"a": 130, "b": 170}, places=64, seed=seed).of(torch.stack((x, y)))
        found.append(float(both[0] @ both[1]))
    found = torch.tensor(found, dtype=torch.float64)
    assert_mean(found, float(x @ y))
    # Coordinates of different pieces of 4 meet at one of 4 places of each of 16 blocks.
    piece = torch.cat((torch.arange(130) // 4, 100 + torch.arange(170) // 4))
    apart = piece[:, None] != piece
    product = torch.outer(x, y)
    theory = float((product**2 + product * product.T)[apart].sum()) / 64
    assert 0.7 < float(found.var()) / theory < 1.4


SIZE = 40_000
PLACE = torch.arange(SIZE)
NOISE = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SHAPES = {
    "one coordinate": (PLACE == 5).double(),
    "few huge coordinates": 30.0 * (PLACE % 9973 == 7) + NOISE[0],
    "equal coordinates": torch.ones(SIZE, dtype=torch.float64),
    "the period of all places": (PLACE % 1024 == 3).double(),
    "the period of a block": (PLACE % 64 == 3).double(),
    "one parameter": (PLACE < 900) * NOISE[0],
    "dense": NOISE[1],
}


@pytest.mark.statistical
@pytest.mark.parametrize("shape", SHAPES)
def test_every_block_is_unbiased_and_their_spread_is_the_true_error(shape):
    vector = SHAPES[shape] / SHAPES[shape].norm()
    blocks = []
    for seed in range(120):
        y = Sketch({"a": 900, "b": SIZE - 900}, places=1024, seed=seed).of(vector[None])
        blocks.append(block_products(y, y)[:, 0, 0])
    blocks = torch.stack(blocks)
    for place in (0, 7, 15):
        assert_mean(blocks[:, place], 1.0, f"block {place}")
    reported = float((blocks.var(1) / blocks.shape[1]).mean() ** 0.5)
    true = float((blocks.mean(1) - 1).square().mean() ** 0.5)
    if shape == "one coordinate":
        assert max(reported, true) < 1e-12, "nothing to collide with"
    else:
        assert 0.7 < reported / true < 1.4, (reported, true)


def test_signs_are_balanced_and_parameters_differ():
    sketch = Sketch({"a": 4000, "b": 4000})
    a, b = (sketch._drawn(name, 0, 4000, torch.device("cpu"))[0] for name in ("a", "b"))
    assert set(a.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(a.mean())) < 4.3 / 4000**0.5
    assert abs(float((a * b).mean())) < 4.3 / 4000**0.5
    assert a.equal(Sketch({"a": 4000, "b": 4000})._drawn("a", 0, 4000, torch.device("cpu"))[0])
    assert not a.equal(Sketch({"a": 4000}, seed=1)._drawn("a", 0, 4000, torch.device("cpu"))[0])


def test_what_is_projected_at_once_changes_nothing(monkeypatch):
    flat = NOISE[:, :5000]
    whole = Sketch({"a": 5000}, places=1024).of(flat)
    monkeypatch.setattr("stabledllm.gradient.sketch._AT_ONCE", 1000)
    torch.testing.assert_close(Sketch({"a": 5000}, places=1024).of(flat), whole)


def test_projected_during_backward_is_the_projection_of_the_exact_gradient():
    net, data, method = model(), rows(), Method.parse("mirror")
    t = torch.tensor([0.9, 0.05, 0.4, 0.7], dtype=torch.float64)
    sketch = Sketch({n: p.numel() for n, p in net.named_parameters()}, places=64)
    exact = torch.zeros(4, sum(sketch.sizes.values()), dtype=torch.float64)
    for index, _, g, _ in RowGradients(metered(net), data, Objective()).gradients(
        torch.arange(4), t, method, Key(0, 0)
    ):
        exact[index] = g
    marker = torch.ones_like(net.head.weight)
    net.head.weight.grad = marker
    projected, losses = torch.zeros(4, 64), torch.zeros(4)
    meter = ProjectedGradients(metered(net), data, Objective(), places=64, tokens_per_batch=60)
    for index, loss, s, _ in meter.gradients(torch.arange(4), t, method, Key(0, 0)):
        projected[index], losses[index] = s, loss.float()
    assert torch.allclose(projected, sketch.of(exact).float(), rtol=1e-4, atol=1e-6)
    assert (losses > 0).all()
    assert net.head.weight.grad is marker, "gradients that were there are put back"
    assert all(p.grad is None for n, p in net.named_parameters() if n != "head.weight")


def test_a_subset_freezes_nothing_for_good():
    net, data = model(), rows()
    meter = ProjectedGradients(metered(net), data, Objective(), places=64, parameters=["head.*"])
    list(meter.gradients(torch.arange(2), torch.tensor([0.5, 0.9]).double(), Method(), Key(0, 0)))
    assert all(p.requires_grad for p in net.parameters())
