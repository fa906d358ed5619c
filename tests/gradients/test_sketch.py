"""The projection: unbiased for inner products, block by block, the same at every call; and what it costs in error."""

from __future__ import annotations

import torch

from stabledllm.gradients.per_row import RowGradients
from stabledllm.gradients.sketch import ProjectedGradients, Sketch
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key
from stabledllm.objective import Objective
from tests.gradients.small import IDS, model, rows
from tests.statistics import assert_mean


def test_inner_products_are_unbiased_and_as_noisy_as_theory_says():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    y += x
    found = []
    for seed in range(400):
        both = Sketch({"a": 130, "b": 170}, places=32, seed=seed).of(torch.stack((x, y)))
        found.append(float(both[0] @ both[1]))
    found = torch.tensor(found, dtype=torch.float64)
    assert_mean(found, float(x @ y))
    # Variance over the signs: sum over pairs of coordinates that share a place.
    place = torch.cat((torch.arange(130), torch.arange(170))) % 32
    shared = (place[:, None] == place) & ~torch.eye(300, dtype=torch.bool)
    product = torch.outer(x, y)
    theory = float((product**2 + product * product.T)[shared].sum())
    assert 0.7 < float(found.var()) / theory < 1.4


def test_every_place_is_unbiased_by_itself():
    x = torch.linspace(-1, 2, 96, dtype=torch.float64)
    squares = torch.stack([Sketch({"a": 96}, places=8, seed=s).of(x[None])[0] ** 2 for s in range(600)])
    for place in range(8):
        assert_mean(squares[:, place], float((x[place::8] ** 2).sum()))


def test_signs_are_balanced_and_blocks_differ():
    sketch = Sketch({"a": 4000, "b": 4000})
    a, b = (sketch._signs(name, torch.device("cpu")) for name in ("a", "b"))
    assert set(a.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(a.mean())) < 4.3 / 4000**0.5
    assert abs(float((a * b).mean())) < 4.3 / 4000**0.5
    assert a.equal(Sketch({"a": 4000, "b": 4000})._signs("a", torch.device("cpu")))
    assert not a.equal(Sketch({"a": 4000}, seed=1)._signs("a", torch.device("cpu")))


def test_projected_during_backward_is_the_projection_of_the_exact_gradient():
    net, data, method = model(), rows(), Method.parse("mirror")
    t = torch.tensor([0.9, 0.05, 0.4, 0.7], dtype=torch.float64)
    sketch = Sketch({n: p.numel() for n, p in net.named_parameters()}, places=64)
    exact = torch.zeros(4, sum(sketch.sizes.values()), dtype=torch.float64)
    for index, _, g in RowGradients(net, data, Objective(), **IDS).gradients(torch.arange(4), t, method, Key(0, 0)):
        exact[index] = g
    marker = torch.ones_like(net.head.weight)
    net.head.weight.grad = marker
    projected, losses = torch.zeros(4, 64), torch.zeros(4)
    meter = ProjectedGradients(net, data, Objective(), **IDS, places=64, tokens_per_batch=60)
    for index, loss, s in meter.gradients(torch.arange(4), t, method, Key(0, 0)):
        projected[index], losses[index] = s, loss.float()
    assert torch.allclose(projected, sketch.of(exact).float(), rtol=1e-4, atol=1e-6)
    assert (losses > 0).all()
    assert net.head.weight.grad is marker, "gradients that were there are put back"
    assert all(p.grad is None for n, p in net.named_parameters() if n != "head.weight")


def test_a_subset_freezes_nothing_for_good():
    net, data = model(), rows()
    meter = ProjectedGradients(net, data, Objective(), **IDS, places=64, parameters=["head.*"])
    list(meter.gradients(torch.arange(2), torch.tensor([0.5, 0.9]).double(), Method(), Key(0, 0)))
    assert all(p.requires_grad for p in net.parameters())
