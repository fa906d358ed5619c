"""Gradients of single rows against plain autograd, one row and one view at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stabledllm.errors import UserError
from stabledllm.gradient.output_layer import OutputLayerNorms
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.gradient.per_row import RowGradients
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.fakes.tiny import metered, model, rows
from tests.gradient.autograd import autograd

DENSITY = Tabulated([2.0, 1.0, 0.5, 0.5])
T = torch.tensor([0.9, 0.02, 0.4, 0.7, 0.3, 0.55], dtype=torch.float64)
METHODS = ["standard", "fixedcount", "mirror", "complement", "multisample3", "syrm", "isad"]


def taken(meter: RowGradients, method: Method, sampler=None, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    losses, out = torch.zeros(len(T), dtype=torch.float64), torch.zeros(len(T), meter.size, dtype=torch.float64)
    for index, loss, gradients, _ in meter.gradients(torch.arange(len(T)), T, method, Key(3, 1), sampler, start):
        losses[index], out[index] = loss, gradients
    return losses, out


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_equals_autograd(name, vectorised):
    net, data, method = model(), rows(), Method.parse(name)
    meter = RowGradients(metered(net), data, Objective(), tokens_per_batch=200, vectorised=vectorised)
    _, found = taken(meter, method, DENSITY)
    expected = [autograd(net, data, i, float(t), method, Key(3, 1), i, DENSITY) for i, t in enumerate(T)]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-9, atol=1e-12)
    assert meter.layers is not None or not vectorised


def test_draws_stand_at_their_positions_whatever_the_batches():
    net, data, method = model(), rows(), Method.parse("mirror")
    whole = taken(RowGradients(metered(net), data, Objective()), method)
    split = taken(RowGradients(metered(net), data, Objective(), tokens_per_batch=40), method)
    assert torch.allclose(whole[1], split[1], rtol=1e-9, atol=1e-13)
    assert torch.allclose(whole[0], split[0])
    assert not torch.allclose(whole[1], taken(RowGradients(metered(net), data, Objective()), method, start=6)[1])


def test_squares_of_single_views():
    net, data = model(), rows()
    meter = RowGradients(metered(net), data, Objective(), tokens_per_batch=10_000)
    _, both = taken(meter, Method.parse("mirror"))
    # One batch: the squares are of its evaluations in the order of their lengths.
    batch = next(meter.gradients(torch.arange(len(T)), T, Method.parse("mirror"), Key(3, 1)))
    squares = torch.zeros(len(T), dtype=torch.float64).index_copy_(0, batch.index, batch.view_squares.double())
    single = Method.parse("standard")  # MIRROR's first view, half of it
    first = torch.stack(
        [autograd(net, data, i, float(t), single, Key(3, 1), i, Uniform()) / 2 for i, t in enumerate(T)]
    )
    expected = (first**2).sum(1) + ((both - first) ** 2).sum(1)
    assert torch.allclose(squares, expected)


def test_a_subset_of_the_parameters():
    net, data = model(), rows()
    everything = taken(RowGradients(metered(net), data, Objective()), Method())[1]
    meter = RowGradients(metered(net), data, Objective(), parameters=["head.*", "blocks.1.ff*"])
    kept = [n.startswith(("head.", "blocks.1.ff")) for n, _ in net.named_parameters()]
    places = torch.cat([torch.full((p.numel(),), k) for p, k in zip(net.parameters(), kept, strict=True)])
    assert torch.allclose(taken(meter, Method())[1], everything[:, places])


def test_parameters_are_named_or_refused():
    net = model()
    assert list(chosen_parameters(net, ["head.weight"])) == ["head.weight"]
    net.embed.weight.requires_grad_(False)
    assert "embed.weight" not in chosen_parameters(net)
    with pytest.raises(UserError, match=r"no trainable parameter matches 'heads.weight' \(did you mean 'head.weight'"):
        chosen_parameters(net, ["heads.weight"])
    with pytest.raises(UserError, match="expected a model with trainable parameters"):
        chosen_parameters(nn.ReLU())


class Scaled(nn.Linear):
    """A layer of a kind that is not known to be linear in its weight."""

    def forward(self, x):
        return super().forward(x) * self.weight.mean()


def test_other_layers_and_shared_weights_fall_back_to_one_backward_a_row():
    data, method = rows(), Method.parse("mirror")
    odd, tied = model(), model()
    odd.blocks[0].ff_out = Scaled(32, 16, bias=False).double()
    tied.head.weight = tied.embed.weight
    for net in (odd, tied):
        meter = RowGradients(metered(net), data, Objective())
        assert meter.layers is None
        expected = [autograd(net, data, i, float(t), method, Key(3, 1), i, Uniform()) for i, t in enumerate(T)]
        assert torch.allclose(taken(meter, method)[1], torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_a_weight_used_outside_its_layer_is_noticed():
    net, data, method = model(), rows(), Method()
    plain = type(net).hidden_states

    def also_used(self, *inputs):
        return plain(self, *inputs) * self.head.weight.mean()

    net.hidden_states = also_used.__get__(net)
    meter = RowGradients(metered(net), data, Objective())
    assert meter.layers is not None, "its layers look as they should"
    found = taken(meter, method)[1]
    assert meter.layers is None
    expected = [autograd(net, data, i, float(t), method, Key(3, 1), i, Uniform()) for i, t in enumerate(T)]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_the_output_layers_norm_in_closed_form(name):
    net, data, method = model(), rows(), Method.parse(name)
    exact = RowGradients(metered(net), data, Objective(), parameters=["head.weight"])
    _, gradients = taken(exact, method, DENSITY)
    meter = OutputLayerNorms(metered(net), data, Objective(), tokens_per_batch=150)
    squares, losses = torch.zeros(len(T), dtype=torch.float64), torch.zeros(len(T), dtype=torch.float64)
    for index, loss, square in meter.norms(torch.arange(len(T)), T, method, Key(3, 1), DENSITY):
        squares[index], losses[index] = square, loss
    assert torch.allclose(squares, (gradients**2).sum(1), rtol=1e-9, atol=0)
    assert torch.allclose(losses, taken(exact, method, DENSITY)[0])


def test_a_model_without_output_embeddings_is_refused(monkeypatch):
    net = model()
    monkeypatch.setattr(net, "get_output_embeddings", lambda: None)
    with pytest.raises(UserError, match="expected a model with output embeddings, found TinyMDM"):
        OutputLayerNorms(metered(net), rows(), Objective())
