"""The study of coverage: its page is made of its results, the intervals hold, and a part of it can be made anew."""

from __future__ import annotations

import json

import pytest
import torch

from stabledllm.stats import intervals
from stabledllm.variance import drawn
from tests.cli.runner import ROOT
from tests.studies.loading import loaded

FOLDER = ROOT / "studies" / "coverage"


@pytest.fixture(scope="module")
def study():
    yield from loaded(FOLDER)


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_results(study, results):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert study.page(text, results) == text
    assert [(c["of"], c["kind"], c["law"], c["steps"]) for c in results["cells"]] == [
        cell[:4] for cell in study.cells()
    ]


def test_intervals_of_few_steps_hold(study, results):
    """All but the gradient's where one step in ten is far larger, which 4 to 16 steps need not show."""
    for cell in results["cells"]:
        held = {name: share for name, share in cell["coverage"].items() if "no interval" not in name}
        unseen = held.pop("variance") if (cell["kind"], cell["law"]) == ("one scale a step", study.RARE) else 1.0
        assert min(held.values()) >= study.LEAST, cell
        assert unseen > 0.5, cell


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["independent rows", "means of rows", "one loss a step"])
@pytest.mark.parametrize("law", ["normal", "log-normal, sigma 0.5"])
def test_made_anew(study, kind, law):
    for steps in (4, 8, 16):
        for name, share in study.of_losses(kind, law, steps, 60).items():
            assert share >= 0.85 or "no interval" in name, (kind, law, steps, name)


@pytest.mark.statistical
@pytest.mark.parametrize(("kind", "law"), [("coordinates", "normal"), ("one scale a step", "log-normal, sigma 1")])
def test_gradients_made_anew(study, kind, law):
    for steps in (4, 8, 16):
        assert study.of_gradients(kind, law, steps, 60)["variance"] >= 0.85, (kind, law, steps)


@pytest.mark.parametrize("law", ["exponential", "gamma, shape 0.5", "one in ten 5 times as wide"])
def test_other_laws_have_mean_0_and_variance_1(study, law):
    x = study.drawn(law, (100_000,), torch.Generator().manual_seed(0))
    assert abs(float(x.mean())) < 5 / 100_000**0.5
    assert abs(float(x.var()) - 1) < 5 * float((x**2).std()) / 100_000**0.5


@pytest.mark.statistical
def test_in_blocks_made_anew(study):
    for simulate in (study.of_losses_in_blocks, study.of_gradients_in_blocks):
        found = simulate("lowdisc", "in blocks of 4", 4, 40)
        assert min(found["variance"], found["ratio 1"]) >= 0.85, found


@pytest.mark.statistical
@pytest.mark.parametrize("law", ["exponential", "gamma, shape 0.5", "one in ten 5 times as wide"])
def test_other_laws_made_anew(study, law):
    for kind in study.KINDS:
        for name, share in study.of_losses(kind, law, 8, 60).items():
            assert share >= 0.85 or "no interval" in name, (kind, law, name)


@pytest.mark.statistical
def test_an_interval_without_the_tail_is_found_to_miss(study, monkeypatch):
    monkeypatch.setattr(drawn, "tail_of", lambda squares, draws: 0.0)
    assert study.of_losses("one loss a step", "log-normal, sigma 1", 16, 100)["variance"] < 0.8


def test_tails_are_never_taken_for_lighter_than_they_are_seen():
    tame, wild = torch.ones(16), torch.tensor([1.0] * 15 + [100.0])
    assert intervals.tail_of(tame, 16) == 6
    assert intervals.tail_of(wild, 16) > 2 * 13
    assert intervals.tail_of(torch.ones(2560), 2560) == pytest.approx(0.6)
