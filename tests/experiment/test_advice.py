"""What the report says to do: switch, stay, or how many more seeds."""

from __future__ import annotations

import random

import pytest

from stabledllm.experiment.advice import advice
from stabledllm.experiment.duration import sentence
from stabledllm.experiment.power import seeds_from_runs
from stabledllm.experiment.statements import statements
from stabledllm.experiment.summary import summarise
from stabledllm.reports.stored import Stored
from stabledllm.reports.summary import summarise as in_short


def runs(gains: dict[str, float], seeds: int, spread: float = 0.01) -> list[dict]:
    """Accuracies over seeds, those of a method above Standard's by its gain, with noise of its own."""
    out, draw = [], random.Random(3)
    for method, gain in {"standard": 0.0, **gains}.items():
        for seed in range(seeds):
            value = 0.4 + gain + draw.gauss(0, spread)
            out.append({"method": method, "seed": seed, "metrics": {"accuracy": {"value": value}}})
    return out


def advised(every: list[dict]) -> str:
    (found,) = advice(every, summarise(every, ["standard"]))
    return found


def test_switch_to_what_is_surely_better():
    found = advised(runs({"ppots": 0.2, "mirror": 0.3}, 6))
    assert found.startswith("By accuracy: switch to mirror, +0.")


def test_stay_where_all_others_are_worse():
    assert "stay with Standard; every other method is worse" in advised(runs({"ppots": -0.2}, 6))


def test_stay_where_no_mean_is_better():
    assert "stay with Standard; no other method has a better mean" in advised(runs({"ppots": -0.004}, 4, 0.02))


def test_how_many_more_seeds():
    every = runs({"ppots": 0.01}, 4, 0.02)
    found = advised(every)
    values = {
        m: {r["seed"]: r["metrics"]["accuracy"]["value"] for r in every if r["method"] == m}
        for m in ("ppots", "standard")
    }
    gain = sum(values["ppots"].values()) / 4 - sum(values["standard"].values()) / 4
    needed = seeds_from_runs(values["ppots"], values["standard"], gain, wanted=0.8, methods=1)["seeds"]
    assert gain > 0
    assert f"about {needed} seeds show it, {needed - 4} more than there are" in found


def test_one_seed_tells_nothing():
    assert "one seed tells no methods apart" in advised(runs({"ppots": 0.1}, 1))


def test_runs_that_are_all_alike_give_no_statement_of_0():
    """Once: "below 0 to 0, by method, cannot be told from 0"."""
    every = runs({"ppots": 0.1, "mirror": 0.1}, 2, spread=0.0)
    said = " ".join(statements(every, summarise(every, ["standard"])))
    assert "below 0" not in said
    assert "each method differed from Standard by the same number for every seed" in said
    one = [run for run in every if run["method"] != "mirror"] + runs({"mirror": 0.1}, 2)[-2:]
    said = " ".join(statements(one, summarise(one, ["standard"])))
    assert "1 of 2 methods differed" in said
    assert "below 0 " not in said


def test_in_short_begins_with_what_to_do(tmp_path):
    every = runs({"ppots": 0.2}, 6)
    summary = summarise(every, ["standard"])
    results = {"runs": every, "summary": summary, "advice": advice(every, summary)}
    decomposition = {"loss": {}, "recommendation": {"method": "lowdisc", "quantity": "gradient", "significant": True,
                                                    "ratio": 0.6, "ci_low": 0.5, "ci_high": 0.7}}  # fmt: skip
    heading, said = in_short(Stored(tmp_path, decomposition=decomposition, results=results))[0]
    assert heading == "What to do"
    assert said[0].startswith("By accuracy: switch to ppots")
    assert "switch to LowDisc, 0.60, 0.50 to 0.70 of Standard's" in said[1]


@pytest.mark.parametrize(("at_once", "text"), [(1, "about 200 s"), (2, "2 at a time"), (9, "4 at a time")])
def test_how_long_is_said(at_once, text):
    assert text.replace("200 s", "3 min") in sentence([100] * 4, 0.5, at_once)


def test_one_run_of_one_step_is_said_so():
    assert "to train one run of 1 step at 2 s" in sentence([1], 2.0, 1)
    assert "to train 2 runs of 2 to 5 steps at 2 s" in sentence([2, 5], 2.0, 1)
