"""P-POTS on the gradient: the norm's second moment by cell, the density it makes best, the proxy's quality."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from stabledllm.gradient.density import norm_profile, proxy_quality
from stabledllm.lab.measure.options import ProbeOptions
from stabledllm.lab.measure.probe_and_fit import probe_and_fit
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.ppots.fit import FitOptions
from stabledllm.ppots.record import FittedDensity, fit_density
from tests.checks.statistics import assert_mean
from tests.fakes.gradients import ToyGradients
from tests.fakes.tiny import model, rows
from tests.oracle import Setting, conditional, panels, toy_row
from tests.statistical.cases import case, in_window, under_bell

KINDS = [toy_row(4, 0), toy_row(3, 1)]
CASES = [
    case("standard"),
    case("mirror"),
    *(in_window(text, 0.3, 0.8) for text in ("standard", "mirror", "fixedcount")),
    *(under_bell(text, 2, 2) for text in ("standard", "complement")),
]


OF = ["bound", "window", "bell", "cart"]


def exact_moment(setting: Setting, low: float, high: float) -> float:
    """Mean over the rows and the cell of E|grad l|², by enumeration and quadrature."""
    total = 0.0
    for row in KINDS:
        t, dt = panels(setting.kinks(row.size), low, high)
        total += float(dt @ conditional(setting, row, t)[1][:, 1:].sum(1)) / (high - low)
    return total / len(KINDS)


@pytest.mark.parametrize("chosen", CASES, ids=str)
def test_second_moments_by_cell_equal_enumeration(chosen):
    meter, method = ToyGradients(KINDS, objective=chosen.objective), chosen.method
    moments = [norm_profile(meter, method, rows=24, rates=4, masks=2, seed=s).moments for s in range(40)]
    edges = moments[0].edges.tolist()
    found = np.array([m.curve().value.numpy() for m in moments])
    for j, (low, high) in enumerate(itertools.pairwise(edges)):
        assert_mean(found[:, j], exact_moment(chosen.setting, low, high), f"cell {j}")


def test_the_fitted_density_has_nearly_the_least_gradient_noise():
    profile = norm_profile(ToyGradients(KINDS, eps=0.01), Method(), rows=200, rates=12, masks=2, seed=1)
    density = fit_density(profile, Method.parse("ppots-gradient"), FitOptions(starts=4)).sampler
    setting = Setting(eps=0.01)

    def moment(sampler) -> float:
        total = 0.0
        for row in KINDS:
            t, dt = panels(np.unique([*setting.kinks(row.size), *np.linspace(0, 1, 200)]), 0.0, 1.0)
            weight = sampler.weight(torch.from_numpy(t)).numpy()
            total += float((dt * weight) @ conditional(setting, row, t)[1][:, 1:].sum(1))
        return total

    t, dt = panels(np.linspace(0, 1, 200), 0.0, 1.0)
    root = np.sqrt(sum(conditional(setting, row, t)[1][:, 1:].sum(1) for row in KINDS))
    least = float(dt @ root) ** 2
    assert moment(Uniform()) > 1.04 * least, "or there is nothing to gain"
    assert moment(density) < (least + moment(Uniform())) / 2, "more than half of what can be gained"
    assert moment(Tabulated([0.5, 1.0, 2.0])) > 1.1 * least


def test_the_record_says_whose_second_moment_it_is(tmp_path):
    profile = norm_profile(ToyGradients(KINDS), Method(), rows=20, rates=4, masks=2, seed=1)
    density = fit_density(profile, Method.parse("lowdisc+ppots-gradient"), FitOptions(starts=3))
    assert density.record["source"] == "lowdisc"
    assert density.record["diagnostics"]["variance_fitted"]["unit"] == "(nats/param)²"
    assert density.record["profile"]["v"] is None, "norms say nothing about v"
    density.save(tmp_path / "p.json")
    loaded = FittedDensity.load(tmp_path / "p.json")
    assert loaded.signal == "gradient"
    assert "E|gradient|²" in loaded.summary()
    assert loaded.sampler.density.equal(density.sampler.density)
    with pytest.raises(ValueError, match=r"expected a density fitted for 'ppots', found one for 'lowdisc\+ppots-grad"):
        loaded.refuse_other(Method.parse("ppots"), "p.json")


def test_the_proxys_density_is_weighed_by_the_gradients_own_moment():
    exact = norm_profile(ToyGradients(KINDS), Method(), rows=40, rates=6, masks=2, seed=1).moments
    best = Tabulated(torch.linspace(2, 0.5, 64, dtype=torch.float64))
    same = proxy_quality(exact, best, exact, best)
    assert (same.correlation, same.excess) == (pytest.approx(1.0), 0.0)
    other = Tabulated(torch.linspace(0.2, 2, 64, dtype=torch.float64))
    assert proxy_quality(exact, best, exact, other).excess > 0.1
    turned = replace(exact, moment=exact.moment.flip(1))
    assert proxy_quality(exact, best, turned, best).correlation < 0.5


@pytest.mark.parametrize(("name", "signal"), [("ppots-gradient", "gradient"), ("ppots-head+mirror", "output layer")])
@pytest.mark.parametrize(
    "objective", [Objective(), Objective(window=(0.3, 0.8)), Objective("bell"), Objective(tokens="cart")], ids=OF
)
def test_before_training_the_right_norm_is_probed(name, signal, objective):
    loaded = LoadedModel(model(), ByteTokenizer(), "small")
    settings = ProbeOptions(rows=6, rates=4, masks=2, starts=2, check_proxy=True)
    found = probe_and_fit(loaded, rows(12), Method.parse(name, objective=objective), settings, 0, 4)
    assert found.record["objective"]["tokens"] == objective.tokens
    assert found.signal == signal
    assert found.forward_passes > 0
    if signal == "output layer":
        assert -1 <= found.record["proxy"]["correlation"] <= 1


def test_a_density_of_another_objective_is_refused():
    loaded = LoadedModel(model(), ByteTokenizer(), "small")
    settings, method = ProbeOptions(rows=4, rates=4, masks=2, starts=2), Method.parse("ppots")
    found = probe_and_fit(loaded, rows(6), method, settings, 0, 4)
    found.refuse_other(Method.parse("ppots", objective=Objective("elbo")), "p.json")
    with pytest.raises(ValueError, match="expected a density fitted for objective"):
        found.refuse_other(Method.parse("ppots", objective=Objective("unweighted")), "p.json")
