"""The study of the published rules in blocks: its rules are the trainers', its page holds what results.json holds."""

from __future__ import annotations

import json
import re

import pytest

from stabledllm.config.settings import ObjectiveSettings
from stabledllm.noise.methods import Method
from tests.cli.runner import ROOT
from tests.studies.loading import loaded

FOLDER = ROOT / "studies" / "block_rules"
NONE = {"ci_low": None, "ci_high": None}


@pytest.fixture(scope="module")
def study():
    yield from loaded(FOLDER)


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_results(study, results):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert study.page(text, results) == text
    done = tuple((cell["objective"], cell["block"]) for cell in results["cells"])
    assert done == study.CELLS


def test_every_rule_was_measured_with_the_published_one_first(study, results):
    for cell in results["cells"]:
        rules = study.RULES[cell["objective"]]
        assert [(e["rule"], e["method"], e["one_t"]) for e in cell["rules"]] == [
            (r.name, r.method, r.one_t) for r in rules
        ]
        for part in ("loss", "gradient"):
            found = [entry[part] for entry in cell["rules"]]
            if part == "gradient" and study.OBJECTIVES[cell["objective"]].window:
                assert found == [None] * len(rules), "decompose refuses it"
            else:
                assert found[0]["over_published"]["value"] == 1
        assert all(Method.parse(rule.method).unbiased for rule in rules)


def test_what_the_page_says_holds(study, results):
    """Every ratio with an interval, and every upper end, in the text of the page is one of the results."""
    before, rest = (FOLDER / "README.md").read_text(encoding="utf-8").split(study.BEGIN)
    quoted = re.findall(r"[\d.]+ \([\d.]+ to [\d.]+\)|below \d[\d.]*\d", before + rest.split(study.END)[1])
    ratios = [
        entry[part]["over_published"]
        for cell in results["cells"]
        for entry in cell["rules"]
        for part in ("loss", "gradient")
        if entry[part]
    ]
    costs = [split["cost_of_one_t"] for cell in results["cells"] for split in cell["one_t"].values() if split]
    known = {study.shown(ratio) for ratio in ratios}
    known |= {"{value:.3f} ({ci_low:.3f} to {ci_high:.3f})".format(**cost) for cost in costs}
    assert len(quoted) >= 10
    assert set(quoted) <= known


def test_an_estimate_of_no_noise_is_shown_by_its_upper_end(study):
    assert study.shown({"value": 0.0, "ci_low": 0.0, "ci_high": 0.271}) == "below 0.27"
    assert study.shown({"value": 0.5, "ci_low": 0.25, "ci_high": 0.75}) == "0.50 (0.25 to 0.75)"
    assert study.shown({"value": 0.0, "ci_low": None, "ci_high": None}) == study.shown({"value": None, **NONE}) == "–"
    assert study.shown(None) == "not measured"


def test_what_is_measured_is_kept(study, results, monkeypatch):
    """A finished cell is not measured again, and each new one is published with it as soon as it is there."""
    published = []
    monkeypatch.setattr(study, "_kept", lambda: results["cells"][1:])
    monkeypatch.setattr(study, "measured", lambda objective, block: {"objective": objective, "block": block})
    monkeypatch.setattr(study, "_publish", published.append)
    study.main()
    assert [(cell["objective"], cell["block"]) for cell in published[-1]] == list(study.CELLS)
    assert published[-1][1:] == results["cells"][1:]
    assert list(published[0][0]) == ["objective", "block", "versions"]


def test_the_objectives_are_those_of_the_trainers(study):
    for objective, name in (("bound", "sdar"), ("unweighted", "fast-dllm"), ("window", "llada2")):
        keys = ObjectiveSettings(name=name).model_dump()
        found = study.OBJECTIVES[objective]
        assert (found.weighting, found.normalization) == (keys["weighting"], keys["normalization"])
        assert found.window == (tuple(keys["window"]) if keys["window"] else None)
