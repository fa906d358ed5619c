"""Models of one's own: how they are called, what is refused, and whose gradient is measured."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stabledllm import Lab, UserError
from stabledllm.forward.meter import MeteredModel
from stabledllm.gradient.output_layer import OutputLayerNorms
from stabledllm.gradient.per_row import RowGradients
from stabledllm.lab.own.model import OwnModel
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key

MASK = 32
SMALL = {"rows": 6, "rates": 3, "masks": 2, "steps": 4, "probe": {"rows": 6, "rates": 4, "starts": 1}}
GRAD = {"rows": 6, "view_rows": 4, "rates": 2, "steps": 4}


def rows(n: int = 8, length: int = 9):
    drawn = torch.randint(MASK, (n, length), generator=torch.Generator().manual_seed(0))
    return [(ids, 3) for ids in drawn]


class Looped(nn.Module):
    """A block that is called twice, with the rows laid end to end, and tied embeddings."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block, self.mix = nn.Embedding(MASK + 1, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, MASK + 1, bias=False)
        self.head.weight = self.embedding.weight
        self.dropout = nn.Dropout(dropout)
        self.double()

    def forward(self, ids, mask=None):
        x = self.embedding(ids)
        for _ in range(2):
            x = x + torch.tanh(self.block(x.flatten(0, 1)).view_as(x) + self.mix(x.mean(1, keepdim=True)))
        return SimpleNamespace(logits=self.head(self.dropout(x)))


def lab(model, data=None, **kwargs) -> Lab:
    return Lab(model, data or rows(), mask_id=MASK, **{"progress": False, "batch": 4} | kwargs)


def causal(ids, mask):
    return nn.functional.one_hot(ids, MASK + 1).double().cumsum(1) / 9


def ignores_padding(ids, mask):
    return nn.functional.one_hot(ids, MASK + 1).double() + ids.double().mean(1)[:, None, None] * torch.arange(MASK + 1)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (5, "model_fn: expected a function of (input_ids, attention_mask), found int."),
        (lambda ids: ids, "found that it fails: TypeError"),
        (lambda ids, mask: (ids, None), "expected logits or an object with .logits, found tuple; pick them out"),
        (lambda ids, mask: ids, "expected logits of shape (rows, length, vocabulary) = (1, 9, V), found (1, 9)."),
        (lambda ids, mask: torch.zeros(*ids.shape, 4), "expected ids below 4, as many as there are logits, found"),
        (lambda ids, mask: torch.full((*ids.shape, MASK), torch.nan), "expected finite cross-entropies"),
        (lambda ids, mask: torch.rand(*ids.shape, MASK), "found others at the second call; is dropout on?"),
        (nn.Embedding(3, 3), "found that it fails: TypeError"),
    ],
)
def test_a_model_that_does_not_do_what_is_assumed_is_refused(model, told):
    with pytest.raises(UserError, match=re.escape(told)):
        lab(model)


def test_a_model_that_sees_padding_is_refused_where_rows_are_padded():
    assert lab(ignores_padding).notes == []
    with pytest.raises(UserError, match="padding beside a row"):
        lab(ignores_padding, [*rows(), *rows(2, 5)])


def test_a_causal_model_is_said():
    assert "causal" in lab(causal).notes[0]
    found = lab(causal).decompose(methods=["fixedcount"], **SMALL)
    assert any("causal" in note for note in found.record["notes"])


def test_logits_that_exclude_the_mask_token_are_taken():
    def excludes(ids, mask):
        logits = nn.functional.one_hot(ids, MASK + 1).double()
        logits[..., MASK] = -torch.inf
        return logits

    assert lab(excludes).elbo(budget=2).bound.value.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mask_id": None}, "mask_id: expected a whole number from 0 to 2147483647, found None."),
        ({"tokens_per_batch": 0}, "tokens_per_batch: expected a whole number from 1 to 2147483647, found 0."),
        ({"seed": -1}, "seed: expected a whole number from 0 to 4294967295, found -1."),
        ({"mask_id": 99}, "found that it fails: IndexError"),
        ({"batch": 0}, "batch: expected a whole number from 1 to 1000000, found 0."),
        ({"head": "heads"}, "head: expected a module of the model or its name, found 'heads' (did you mean 'head'?)."),
    ],
)
def test_wrong_arguments(arguments, told):
    with pytest.raises(UserError, match=re.escape(told)):
        Lab(Looped(), rows(), **{"mask_id": MASK} | arguments)


class Named(nn.Module):
    """LLaDA's remote code takes embeddings second."""

    def __init__(self):
        super().__init__()
        self.inner = Looped()

    def forward(self, input_ids, inputs_embeds=None, attention_mask=None):
        assert inputs_embeds is None
        assert attention_mask.dtype == torch.bool
        return self.inner(input_ids)


class Wrapper(nn.Module):
    """As data-parallel wrappers hand on what they are given."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_arguments_are_given_by_name_where_they_have_these_names():
    plain = lab(Looped()).elbo(budget=2).bound.value
    for model in (Named(), Wrapper(Named()), Wrapper(Looped())):
        assert torch.equal(lab(model).elbo(budget=2).bound.value, plain)


def test_mode_and_gradients_are_the_caller_s_afterwards():
    model = Looped(dropout=0.5).train()
    model.block.bias.grad = torch.ones(8, dtype=torch.float64)
    lab(model).decompose_gradient(methods=["fixedcount"], grad=GRAD, **SMALL)
    assert model.training
    assert model.dropout.training
    assert torch.equal(model.block.bias.grad, torch.ones(8, dtype=torch.float64))
    assert model.mix.weight.grad is None


def parts(model, parameters):
    found = lab(model).decompose_gradient(parameters, methods=["mirror"], grad=GRAD, **SMALL)
    return [found.record["gradient"][name]["value"] for name in ("mask_pattern", "mask_rate", "data")]


def test_parameters_by_name_beginning_pattern_and_themselves():
    model = Looped()
    by_name = parts(model, ["block.weight", "block.bias"])
    for same in ("block", "block.*", list(model.block.parameters())):
        assert parts(model, same) == by_name
    assert parts(model, None) != by_name
    function = lambda ids, mask: model(ids).logits  # noqa: E731
    assert parts(function, model.block.parameters()) == pytest.approx(by_name, rel=1e-9)
    assert parts(function, model.parameters()) == pytest.approx(parts(model, None), rel=1e-9)


def test_p_is_fitted_to_the_gradient_of_the_parameters_named():
    here, probe = lab(Looped()), {"rows": 6, "rates": 4, "family": "tabulated"}
    of_all, of_block = (here.fit("ppots-gradient", parameters=p, **probe).record for p in (None, "block"))
    assert of_block["density"] != of_all["density"]
    assert here.fit("ppots-gradient", parameters=["block.*"], **probe).record["density"] == of_block["density"]
    with pytest.raises(UserError, match="fit: expected no parameters for 'ppots'"):
        here.fit("ppots", parameters="block", **probe)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ("blok", "parameters: no trained parameter matches 'blok' (known: embedding.weight, block.weight,"),
        ([nn.Parameter(torch.zeros(2))], "expected trained parameters of the model, found a tensor of shape (2,)"),
        ([5], "parameters: expected parameters or their names, found int."),
        ([], "parameters: expected at least one parameter, found none."),
    ],
)
def test_wrong_parameters(parameters, told):
    with pytest.raises(UserError, match=re.escape(told)):
        lab(Looped()).decompose_gradient(parameters, **SMALL)


def test_a_function_must_be_given_its_parameters():
    function = lab(lambda ids, mask: Looped()(ids).logits)
    for given in (None, ["block"], [torch.zeros(2)]):
        with pytest.raises(UserError, match="since model_fn is no module"):
            function.decompose_gradient(given, **SMALL)


def test_without_a_head_its_method_is_left_out_and_said_or_refused():
    left_out = lab(Looped()).decompose(**SMALL).record
    assert all("ppots-head" not in entry["method"] for entry in left_out["methods"])
    assert any("give Lab its head" in note for note in left_out["notes"])
    with pytest.raises(UserError, match="expected head"):
        lab(Looped()).fit("ppots-head")
    with pytest.raises(UserError, match="expected head"):
        lab(Looped()).decompose(methods=["ppots-head"], **SMALL)
    with_head = lab(Looped(), head="head").decompose(**SMALL).record
    assert any("ppots-head" in entry["method"] for entry in with_head["methods"])


@pytest.mark.parametrize("shift", [False, True])
def test_gradients_and_the_head_s_norms_are_autograd_s_whatever_the_layers(shift):
    """Every way to take a row's gradient, of a model whose layers cannot be recorded, with logits shifted or not."""
    model = Looped()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())  # untied, so that the head has its own norm
    data = lab(model).rows
    metered = MeteredModel(OwnModel(model, shift=shift, head="head"), MASK, 0)
    row, t = torch.arange(8), torch.linspace(0.2, 1, 8, dtype=torch.float64)
    meters = [RowGradients(metered, data, Objective(), vectorised=vectorised) for vectorised in (True, False)]
    each = [torch.cat([b.gradients.clone() for b in m.gradients(row, t, Method(), Key(0, 0))]) for m in meters]
    assert torch.allclose(*each, rtol=1e-9)
    of_head = RowGradients(metered, data, Objective(), parameters=["head.weight"])
    squares = torch.cat([(b.gradients**2).sum(1) for b in of_head.gradients(row, t, Method(), Key(0, 0))])
    norms = OutputLayerNorms(metered, data, Objective()).norms(row, t, Method(), Key(0, 0))
    assert torch.allclose(torch.cat([square for _, _, square in norms]), squares, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda lab: lab.decompose(row=3), "decompose: unknown option 'row' (did you mean 'rows'?)."),
        (lambda lab: lab.decompose(probe={"row": 3}), "probe: unknown option 'row' (did you mean 'rows'?)."),
        (lambda lab: lab.decompose(probe=3), "probe: expected a dictionary of options, found int."),
        (lambda lab: lab.decompose(methods=["stratz"]), "unknown part 'stratz' (did you mean 'strats'?)."),
        (lambda lab: lab.decompose(methods=["adaptive"]), "expected a density that is fixed"),
        (lambda lab: lab.decompose(methods=["isad"]), "expected rows with data.delimiters"),
        (lambda lab: lab.fit("standard"), "fit: expected a method with 'ppots', found 'standard'."),
        (lambda lab: lab.fit(bath=2), "fit: unknown option 'bath'"),
        (lambda lab: lab.fit(batch=0), "batch: expected a whole number from 1 to 1000000, found 0."),
        (lambda lab: lab.decompose(grad=GRAD), "expected no grad and no parameters where the gradient is not measured"),
        (lambda lab: lab.recommend("loss", parameters="block"), "expected no grad and no parameters"),
        (lambda lab: lab.decompose(forwards=1), "forwards: expected a whole number from 2 to 1000000, found 1."),
        (lambda lab: lab.recommend("lost"), "recommend: expected by='gradient' or 'loss', found 'lost'."),
        (lambda lab: lab.elbo("clipped"), "elbo: expected an unbiased method"),
    ],
)
def test_wrong_calls(call, told):
    with pytest.raises(UserError, match=re.escape(told)):
        call(lab(Looped()))


def test_a_model_that_was_trained_meanwhile_is_measured_again():
    model = Looped()
    here = lab(model)
    first = here.decompose(methods=[], **SMALL).record["loss"]
    with torch.no_grad():
        model.head.weight.mul_(2)
    again = here.decompose_gradient(methods=[], grad=GRAD, **SMALL).record["loss"]
    assert again == lab(model).decompose(methods=[], **SMALL).record["loss"]
    assert again != first


def test_fewer_than_four_rows():
    with pytest.raises(UserError, match="expected at least 4 to measure variances, found 3"):
        lab(Looped(), rows(3)).decompose()
