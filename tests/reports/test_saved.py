"""Compute saved, as the report and the terminal show what is stored."""

from __future__ import annotations

import re

import numpy as np
import pytest

from stabledllm.experiment.compute_saved import compute_saved
from stabledllm.experiment.reference import name_at
from stabledllm.experiment.summary import summarise
from stabledllm.reports import figures
from stabledllm.reports.html import write_report
from stabledllm.reports.labels import label
from stabledllm.reports.printed import experiment_text
from stabledllm.reports.saved import curve_table, saved_metrics, saved_table
from tests.fakes import results as made_up
from tests.fakes.results import est, put

TRUE = {"lowdisc+fixedcount": 0.8, "ppots": 0.93, "mirror": 1.2, "strats": 0.3, "clipped": 1.7}


def stored(seeds: int = 6) -> dict:
    """Made-up results with a Standard that falls with its forwards, and methods inside and beyond the budgets."""
    rng = np.random.default_rng(2)

    def runs_at(name: str, multiple: float, forwards: int) -> list[dict]:
        return [
            {
                "method": name,
                "seed": seed,
                "metrics": {"validation_nll": est(0.08 + 0.03 / multiple + own, 0.005, 256, "nats/token")},
                "forward_passes": forwards,
                "probe_forward_passes": 2400 * (name == "ppots"),
                "steps": forwards // 16,
                "seconds": forwards * (0.01 + 0.002 * (name == "mirror")) + seed,
                "history": [],
            }
            for seed, own in enumerate((0.0004 * rng.standard_normal(seeds)).tolist())
        ]

    runs = [run for name, need in ({"standard": 1.0} | TRUE).items() for run in runs_at(name, 1 / need, 4800)]
    other = [run for m in (0.75, 1.25, 1.5, 2.0) for run in runs_at(name_at(m), m, round(4800 * m))]
    base = made_up.results([*TRUE], 0) | {"runs": runs, "reference_runs": other, "untuned": None}
    told = {"summary": summarise(runs, ["standard"]), "statements": [], "advice": []}
    return base | {"compute_saved": compute_saved(runs, other)} | told


@pytest.fixture(scope="module")
def results() -> dict:
    return stored()


def test_the_table_and_the_sentences_say_what_is_stored(results):
    table = saved_table(results, "validation_nll", label)
    cells = {row[0]: row[1:] for row in table.rows}
    assert list(cells) == [label(name) for name in TRUE]
    needs, saves, *_ = cells["LowDisc + FixedCount"]
    value, low, high = map(float, re.fullmatch(r"(0\.\d\d) \((0\.\d\d) to (0\.\d\d)\)", needs).groups())
    assert low <= 0.8 <= high
    assert saves == f"{100 - 100 * value:.0f} %"
    assert cells["StraTS"][:2] == ("less than 0.50", "–")
    assert cells["Clipped"][:2] == ("more than 1.33", "–")
    assert cells["P-POTS"][3] != "–", "what its probe makes of it"
    assert cells["MIRROR"][2].startswith("1.4"), "a fifth slower on top"
    printed = "\n".join(experiment_text(results))
    for words in ("Compute saved, by validation NLL", "strats less than 0.50", "Share of Standard's forwards needed"):
        assert words in printed.replace("\n", " ")
    assert saved_table(results, "accuracy") is None
    assert saved_metrics({"compute_saved": None}) == []


def test_the_report_draws_it(results, tmp_path):
    put(tmp_path, "results.json", results)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("Standard&#39;s curve over its forward passes") == 1
    assert "Standard at each budget" in page
    assert "<h3>Compute saved</h3>" in page
    assert "Every run (60)" in page, "those at other budgets too"
    (entry,) = saved_metrics(results)
    left, right = figures.compute_saved(entry).axes
    curve = next(line for line in left.get_lines() if line.get_label().startswith("Standard"))
    assert list(curve.get_xdata()) == [3600, 4800, 6000, 7200, 9600]
    assert [text.get_text() for text in right.get_yticklabels()] == [label(name) for name in TRUE]
    arrows = [line.get_marker() for line in right.get_lines() if line.get_marker() in "<>"]
    assert arrows == ["<", ">"], "the two that lie beyond the budgets"


def test_one_budget_or_no_method_draws_nothing(results):
    (entry,) = saved_metrics(results)
    assert figures.compute_saved(entry | {"methods": []}) is None
    assert figures.compute_saved(entry | {"curve": entry["curve"][:1]}) is None
    cut = entry | {"curve": [point | {"used": point["multiple"] < 2} for point in entry["curve"]]}
    assert curve_table(cut).rows[-1][-1] == "no"
    assert figures.compute_saved(cut) is not None
