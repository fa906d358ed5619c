"""The advice follows from a record alone: which estimator, how many forwards, and whether the loss is corrected."""

from __future__ import annotations

import math

import pytest
import yaml

from stabledllm.config.run_folder import MEASURED
from stabledllm.errors import UserError
from stabledllm.lab import preferences
from stabledllm.lab.noise_advice import MOST_BUDGET, advise
from stabledllm.reports.shapes import SHAPES, check_shape
from tests.fakes.results import policy_noise, preference_noise


def row(name, ratio=1.0, p=None, *, forwards=4, multiple=1, gradient=2.0, between=8.0, bias=0.0, error=0.001, **more):
    def estimate(value, stderr):
        return {"value": value, "stderr": stderr, "n": 16, "unit": ""}

    over = {"value": ratio, "ci_low": ratio / 2, "ci_high": 1.5 * ratio}
    return {
        "name": name, "forwards": forwards, "multiple": multiple, "gradient": estimate(gradient, 0.1),
        "between": between, "bias": estimate(bias, error), "value": estimate(0.7, 0.01),
        "over_standard": {"loss": over, "gradient": over}, "p_holm": p and {"loss": 1.0, "gradient": p}, **more,
    }  # fmt: skip


def record(*rows, objective="dpo"):
    return {
        "objective": objective, "start": "base", "data": "pairs.jsonl", "methods": list(rows),
        "recipe": {"data": {"max_len": 99}, objective: {"beta": 0.3}},
    }  # fmt: skip


def test_the_least_of_those_that_are_surely_below_is_advised():
    rows = row("standard"), row("strats", 0.2, 0.07), row("lowdisc", 0.4, 0.01), row("mirror", 0.6, 0.001)
    found = advise(record(*rows))
    assert (found.method, found.told_apart, found.budget) == ("lowdisc", True, 1)
    assert "lowdisc has 0.4 (0.2 to 0.6) of Standard's gradient noise" in found.sentences[0]
    assert "3 comparisons" in found.sentences[0]
    recipe = yaml.safe_load(found.recipe)
    assert recipe == {
        "model": "base", "data": {"train": "pairs.jsonl", "max_len": 99}, "objective": {"kind": "dpo"},
        "dpo": {"beta": 0.3, "budget": 1, "correction": "none"}, "method": "lowdisc",
    }  # fmt: skip


def test_standard_stays_where_none_is_told_apart():
    found = advise(record(row("standard"), row("strats", 0.5, 0.2)))
    assert (found.method, found.told_apart) == ("standard", False)
    assert "p = 0.2 after Holm's" in found.sentences[0]
    assert not advise(record(row("standard"), row("strats", 0.5, 0.01)), "loss").told_apart, "decided by the loss"


@pytest.mark.parametrize(
    ("gradient", "between", "multiple", "budget"),
    [
        (2.0, 8.0, 1, 1),  # 8 of noise from one forward: as much as of the data
        (2.1, 8.0, 1, 2),
        (8.0, 8.0, 1, 4),
        (9.0, 8.0, 1, 8),
        (1.0, 8.0, 3, 3),
        (2.0, 1e-9, 1, MOST_BUDGET),
        (2.0, -1.0, 1, 4),  # no variance of data is told: as measured
        (2.0, math.nan, 1, 4),
    ],
)
def test_the_budget_is_the_least_at_which_data_make_half_the_variance(gradient, between, multiple, budget):
    one = row("standard", gradient=gradient, between=between, multiple=multiple)
    assert advise(record(one, row("mirror", 1.2, 1.0))).budget == budget


@pytest.mark.parametrize(
    ("name", "bias", "error", "expected", "why"),
    [
        ("fixedcount", 0.03, 0.001, "jackknife", "takes it off"),
        ("fixedcount", 0.001, 0.0001, "none", "too little to correct"),  # a seventh of a percent
        ("fixedcount", 0.03, 0.02, "none", "which is not told from 0"),
        ("lowdisc", 0.03, 0.001, "none", "would allow correction=jackknife"),  # a lattice of two draws: no replicates
    ],
)
def test_the_correction_needs_a_bias_and_replicates(name, bias, error, expected, why):
    one = row(name, 0.3, 0.001, gradient=4.0, bias=bias, error=error)
    found = advise(record(row("standard"), one))
    assert found.budget == 2
    assert found.correction == expected
    assert why in found.sentences[-1]
    assert advise(record(row("standard"), one, objective="grpo")).correction is None


def test_a_fitted_density_is_asked_for():
    found = advise(record(row("standard"), row("ppots", 0.3, 0.001)))
    assert "train with it, and give the p_of_t of stabledllm fit." in found.sentences[0]


def test_standard_alone_is_refused():
    with pytest.raises(UserError, match="found Standard alone"):
        advise(record(row("standard"), row("standard, draws not shared")))


def test_an_estimator_of_a_name_of_its_own_is_a_key_of_its_kind():
    one = row("espo", 0.3, 0.001, preset="espo", multiple=2)
    recipe = yaml.safe_load(advise(record(row("standard"), one, objective="grpo")).recipe)
    assert recipe["method"] == "standard", "which a published estimator is written beside"
    assert recipe["grpo"] == {"beta": 0.3, "budget": 2, "estimator": "espo"}


def test_a_record_has_the_shape_that_is_read():
    for kind, made_up in (("preference_noise", preference_noise), ("policy_noise", policy_noise)):
        check_shape("x.json", made_up(), SHAPES[kind])
    assert MEASURED["preference_noise"] == preferences.RECORD
    broken = preference_noise()
    broken["methods"][0]["multiple"] = None
    with pytest.raises(UserError, match="multiple"):
        check_shape("x.json", broken, SHAPES["preference_noise"])
