"""No command makes a figure of a loss, gradient or probability that is NaN or infinite: one sentence, exit code 2."""

from __future__ import annotations

import math

import pytest
import torch

from stabledllm.errors import NotFinite
from stabledllm.forward.elbo import elbo, elbo_parts
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.gradient.output_layer import OutputLayerNorms
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.sketch import ProjectedGradients
from stabledllm.gradient.step_meter import StepMeter
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.cli.runner import assert_refused, in_process
from tests.fakes.tiny import rows

SMALL = ("rows=4", "rates=4", "masks=2", "steps=4", "probe.rows=4", "probe.rates=4", "methods=[standard,mirror]")
GRADIENT = ("gradient=true", "grad.rows=4", "grad.view_rows=4", "grad.steps=4")
PROBE = ("ppots.rows=4", "ppots.rates=4", "ppots.starts=1")


@pytest.fixture
def broken(monkeypatch):
    """The shipped model, whose numbers for rows of more than a few tokens are not finite."""
    real = TinyMDM.forward

    def forward(self, input_ids, *args, **kwargs):
        out = real(self, input_ids, *args, **kwargs)
        if input_ids.shape[1] > 6:
            for name in ("nll", "logits"):
                if getattr(out, name, None) is not None:
                    setattr(out, name, getattr(out, name) * math.nan)
        return out

    monkeypatch.setattr(TinyMDM, "forward", forward)


@pytest.mark.parametrize(
    ("command", "written"),
    [
        (["decompose", *SMALL, "--out", "out"], "decomposition.json"),
        (["decompose", *SMALL, *GRADIENT, "--out", "out"], "decomposition.json"),
        (["recommend", *SMALL, *GRADIENT, "--out", "out"], "decomposition.json"),
        (["fit", *PROBE, "--out", "out"], "p_of_t.json"),
        (["fit", "--method", "ppots-head", *PROBE, "--out", "out"], "p_of_t.json"),
        (["fit", "--method", "ppots-gradient", *PROBE, "--out", "out"], "p_of_t.json"),
        (["eval", "--rows", "4", "--length", "8", "--steps", "4", "--block", "4", "--out", "out"], "eval.json"),
        (["generate", "What is 2 + 3?", "--length", "8", "--steps", "4", "--block", "4"], "out"),
        (["generate", "What is 2 + 3?", "--length", "8", "--steps", "4", "--set", "temperature=1"], "out"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_every_command_that_writes_a_figure_refuses(tmp_path, broken, command, written):
    assert_refused(in_process(*command, cwd=tmp_path), "finite")
    assert not (tmp_path / "out" / written).exists()


def meter(kind, spoil=None, **kwargs):
    torch.manual_seed(0)
    model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16))
    if spoil:
        model.register_forward_hook(spoil)
    return kind(MeteredModel(model, 256, 257), rows(6), Objective(), **kwargs)


def measured(of) -> None:
    index, t, key = torch.tensor([0, 1, 2]), torch.full((3,), 0.7, dtype=torch.float64), Key(0, 0)
    if isinstance(of, LossMeter):
        of.losses(index, t, Method.parse("standard"), key)
    elif isinstance(of, OutputLayerNorms):
        list(of.norms(index, t, Method.parse("standard"), key))
    elif isinstance(of, StepMeter):
        of._step(Method.parse("standard"), Method.parse("standard").sampler(), 3, 0, 0)
    else:
        list(of.gradients(index, t, Method.parse("standard"), key))


METERS = [LossMeter, RowGradients, ProjectedGradients, OutputLayerNorms, StepMeter]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", METERS)
def test_a_loss_that_is_not_finite_names_the_model_and_the_row(kind, value):
    def last_only(model, inputs, out):
        out.nll = torch.cat((out.nll[:-1], out.nll[-1:] * value))

    measured(meter(kind))
    with pytest.raises(NotFinite, match=f"losses of TinyMDM on synthetic.*: expected .*, found {value} "):
        measured(meter(kind, last_only))


@pytest.mark.parametrize("kind", [RowGradients, ProjectedGradients, StepMeter])
def test_a_gradient_that_is_not_finite_is_refused_where_the_loss_is(kind):
    found = meter(kind)
    next(iter(found.model.parameters())).register_hook(lambda grad: grad * math.inf)
    if kind is RowGradients:  # reads the layers' own gradients, not the parameters'
        found.layers = None
    with pytest.raises(NotFinite, match="gradient"):
        measured(found)


def test_a_bound_on_the_likelihood_is_refused_too():
    """And with it the log-likelihoods of lm-evaluation-harness, whose choices would be NaN's."""
    found = meter(LossMeter)
    assert elbo(found.model, found.rows, budget=2, mask_id=256, pad_id=257).value.isfinite().all()
    found.model.register_forward_hook(lambda model, inputs, out: setattr(out, "nll", out.nll * math.nan))
    for bound in (elbo, lambda *a, **k: list(elbo_parts(*a, **k))):
        with pytest.raises(NotFinite, match="elbo: losses of TinyMDM: expected finite numbers, found nan"):
            bound(found.model, found.rows, budget=2, mask_id=256, pad_id=257)
