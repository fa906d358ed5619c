"""The study of the published rules in blocks: its rules are the trainers', its page holds what results.json holds."""

from __future__ import annotations

import importlib.util
import json

import pytest

from stabledllm.noise.methods import Method
from tests.cli.runner import ROOT

FOLDER = ROOT / "studies" / "block_rules"


@pytest.fixture(scope="module")
def study():
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("block_rules_study", FOLDER / "study.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "block_rules_study", found)  # its dataclass looks its module up
    spec.loader.exec_module(found)
    yield found
    monkeypatch.undo()


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_results(study, results):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert study.page(text, results) == text
    done = tuple((cell["objective"], cell["block"]) for cell in results["cells"])
    assert done == study.CELLS[: len(done)], "the study writes what it has measured so far"
    assert len(done) >= 2


def test_every_rule_was_measured_with_the_published_one_first(study, results):
    for cell in results["cells"]:
        rules = study.RULES[cell["objective"]]
        assert [(e["rule"], e["method"], e["one_t"]) for e in cell["rules"]] == [
            (r.name, r.method, r.one_t) for r in rules
        ]
        first = cell["rules"][0]
        assert first["loss"]["over_published"]["value"] == first["gradient"]["over_published"]["value"] == 1
        assert all(Method.parse(rule.method).unbiased for rule in rules)


def test_what_the_page_says_holds(study, results):
    """The ratios that its text quotes are those of the results."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8").split(study.END)[1]
    shown = {
        study.shown(entry[part]["over_published"])
        for cell in results["cells"]
        for entry in cell["rules"]
        for part in ("loss", "gradient")
    }
    quoted = [part for part in shown if part in text and "to" in part]
    assert len(quoted) >= 4, "the page quotes ratios with their intervals"
