"""Seeds needed: against simulated experiments and against each other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from stabledllm.errors import UserError
from stabledllm.experiment.power import power, sd_of_differences, seeds_from_runs, seeds_needed
from stabledllm.experiment.statements import sd_ratio_needed, statements
from stabledllm.experiment.summary import summarise
from stabledllm.likelihood.holm import holm
from tests.checks.statistics import assert_mean
from tests.cli.runner import assert_refused, in_process


@pytest.mark.parametrize(("difference", "sd", "seeds"), [(1.0, 1.0, 5), (0.5, 1.0, 20), (2.0, 1.3, 3), (0.0, 1.0, 4)])
def test_power_is_the_share_of_experiments_that_show_it(difference, sd, seeds):
    drawn = np.random.default_rng(1).normal(difference, sd, size=(20_000, seeds))
    shown = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05
    assert_mean(shown.astype(float), power(difference, sd, seeds))


def test_correlated_runs_differ_less():
    rng = np.random.default_rng(2)
    pair = rng.multivariate_normal([0, 0], [[4.0, 2.4], [2.4, 4.0]], size=200_000)
    assert sd_of_differences(2.0, 0.6) == pytest.approx(float(np.std(pair[:, 0] - pair[:, 1])), rel=0.01)


@pytest.mark.parametrize("methods", [1, 4])
def test_seeds_needed_is_the_least_that_is_enough(methods):
    n = seeds_needed(0.7, 1.0, methods=methods)
    assert power(0.7, 1.0, n, alpha=0.05 / methods) >= 0.8 > power(0.7, 1.0, n - 1, alpha=0.05 / methods)
    assert seeds_needed(0.7, 1.0, methods=4) > seeds_needed(0.7, 1.0)
    assert seeds_needed(5.0, 0.0) == 2
    assert seeds_needed(5.0, 0.001) == 2, "so far out that a probability is below the smallest number"
    assert seeds_needed(1e-6, 1.0) is None


def test_what_the_runs_say_is_as_uncertain_as_their_sd():
    values, standard = {1: 0.5, 2: 0.8, 3: 0.6, 9: 5.0}, {1: 0.4, 2: 0.4, 3: 0.5}
    found = seeds_from_runs(values, standard, 0.1, wanted=0.8, methods=1)
    assert found["n"] == 3
    assert found["sd"] == pytest.approx(np.std([0.1, 0.4, 0.1], ddof=1))
    assert found["seeds_low"] < found["seeds"] == seeds_needed(0.1, found["sd"]) < found["seeds_high"]
    assert seeds_from_runs({1: 0.5}, standard, 0.1, wanted=0.8, methods=1) is None


def test_holm_keeps_the_family_wise_rate():
    assert holm([0.01, 0.04, 0.03, None]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06), None]
    p = np.random.default_rng(3).uniform(size=(20_000, 3))
    false_alarm = np.array([min(holm(list(row))) < 0.05 for row in p])
    # With independent uniform p values Holm rejects any at 1 - (1 - 0.05 / 3)^3.
    assert_mean(false_alarm.astype(float), 1 - (1 - 0.05 / 3) ** 3)


def test_three_seeds_tell_no_ratio_of_sds_below_six():
    """The paper compares sds over three seeds; independent normal runs of one law give such ratios in 5 %."""
    assert sd_ratio_needed(3) == pytest.approx(39.0**0.5, rel=1e-3)
    drawn = np.random.default_rng(4).normal(size=(2, 20_000, 3)).std(axis=2, ddof=1)
    ratio = np.maximum(drawn[0] / drawn[1], drawn[1] / drawn[0])
    assert_mean((ratio > sd_ratio_needed(3)).astype(float), 0.05)


def results(seeds: int = 3) -> dict:
    rng = np.random.default_rng(5)
    runs = [
        {"method": method, "seed": seed, "metrics": {"accuracy": {"value": 0.4 + 0.1 * rng.normal()}}}
        for method in ("standard", "ppots", "mirror")
        for seed in range(seeds)
    ]
    return {"runs": runs, "summary": summarise(runs, ["standard"])}


def test_the_statement_names_what_would_have_been_significant():
    found = results()
    (said,) = statements(found["runs"], found["summary"])
    assert said.startswith("In accuracy, with 3 seeds, 2 methods compared: a mean difference from Standard below ")
    assert "a ratio of sds below 6.2 cannot be told from 1" in said
    by_method = {
        m: np.array([r["metrics"]["accuracy"]["value"] for r in found["runs"] if r["method"] == m])
        for m in ("standard", "ppots", "mirror")
    }
    edges = []
    for method in ("ppots", "mirror"):
        differences = by_method[method] - by_method["standard"]
        shift = stats.t.ppf(1 - 0.025 / 2, 2) * differences.std(ddof=1) / 3**0.5
        p = stats.ttest_1samp(differences - differences.mean() + shift, 0.0).pvalue
        assert p == pytest.approx(0.025)
        edges.append(shift)
    assert f"{min(edges):.2g} to {max(edges):.2g}" in said
    assert not statements(results(1)["runs"], results(1)["summary"])


def test_p_values_are_corrected_for_the_number_of_methods():
    entries = {e["method"]: e["versus_standard"] for e in results(6)["summary"]}
    raw = [entries[m]["p_value"] for m in ("ppots", "mirror")]
    assert [entries[m]["p_holm"] for m in ("ppots", "mirror")] == holm(raw)


def test_command(tmp_path):
    out = in_process("power", "--difference", "0.7", "--sd", "1", "--correlation", "0.5", cwd=tmp_path).stdout
    assert out.startswith(f"{seeds_needed(0.7, 1.0)} seeds")
    record = results() | {"schema": "stabledllm/results/1", "config": {}, "status": {"finished": 9, "planned": 9}}
    record |= {"versions": {}, "device": "cpu", "untuned": None, "notes": []}
    (tmp_path / "results.json").write_text(json.dumps(record))
    lines = in_process("power", "--difference", "0.1", "--from", ".", cwd=tmp_path).stdout.splitlines()
    assert [line.split(":")[0] for line in lines if ":" in line] == ["metric", "ppots", "mirror"]
    assert "known from 3 seeds only" in " ".join(lines)
    for wrong in (["--sd", "1", "--from", "."], ["--sd", "-1"], ["--sd", "1", "--correlation", "2"], []):
        assert_refused(in_process("power", "--difference", "0.1", *wrong, cwd=tmp_path), "power: expected")
    assert_refused(in_process("power", "--difference", "0", "--sd", "1", cwd=tmp_path), "other than 0")
    refused = {
        "--difference inf --sd 1": "such as 0.01, found inf",
        "--difference 1 --sd 0": "--sd above 0",
        "--difference 1 --sd -1": "found -1",
        "--difference 1 --sd nan": "found nan",
        "--difference 1 --sd 1 --correlation 1": "to below 1",
        "--difference 1 --sd 1 --power 1": "--power between 0 and 1, such as 0.8, found 1",
    }
    for typed, said in refused.items():
        assert_refused(in_process("power", *typed.split(), cwd=tmp_path), said)
    with pytest.raises(UserError, match="power inside"):
        seeds_needed(1.0, 1.0, wanted=1.0)
