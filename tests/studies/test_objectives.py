"""The study of objectives: its tables and answers on made-up runs, the rate it picks, its page that of its results."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from scipy import stats
from studies.objectives import page, study
from studies.objectives.answers import all_versus, answers, averages, saved, spread, values, versus
from studies.objectives.rows import BASE, LESS, OBJECTIVES, RECOMMENDED, ROWS, STANDARD, Row

from stabledllm.build import build_objective
from stabledllm.config import load_recipe
from stabledllm.config.settings import ObjectiveSettings
from stabledllm.forward.chosen import further_forwards
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from tests.cli.runner import ROOT

FOLDER = ROOT / "studies" / "objectives"
SEEDS = range(1, 9)
LEVELS = {STANDARD: 0.110, LESS: 0.100, "lift": 0.104, "lift, less noise": 0.090, "bell": 0.120}
WAYS = {"bell": 5.0}
"""Rows whose seeds vary more, as a multiple of Standard's sd."""


def run(method: str, seed: int, nll: float | None, forwards: int = 4800, **more) -> dict:
    metrics = {} if nll is None else {"validation_nll": {"value": nll}, "accuracy": {"value": 1 - nll}}
    record = {"method": method, "seed": seed, "status": "diverged" if nll is None else "finished", "metrics": metrics}
    return record | {"forward_passes": forwards, "steps": 300, "seconds": 10.0} | more


def made_up(seeds=SEEDS, levels=LEVELS) -> dict:
    """A row's seeds share most of their noise with Standard's, as paired ones do."""
    rng = np.random.default_rng(0)
    shared = dict(zip(seeds, 0.001 * rng.normal(size=len(seeds)), strict=True))
    rows = {}
    for row in ROWS:
        if row.name in levels:
            own = {s: levels[row.name] + WAYS.get(row.name, 1) * shared[s] + 2e-4 * rng.normal() for s in seeds}
            kept = [
                run(row.method, s, v, averages={"ema-0.98": {"metrics": {"validation_nll": {"value": v + 0.001}}}})
                for s, v in own.items()
            ]
            if row == BASE:
                kept += [
                    run(f"{STANDARD}@{m:g}x", s, own[s] + more, round(4800 * m))
                    for m, more in ((0.75, 0.01), (1.5, -0.012), (2, -0.016))
                    for s in seeds
                ]
            rows[row.name] = {"learning_rate": 2e-3, "runs": kept}
    rates = {"standard": {"1e-3": [0.12, 0.11], "2e-3": [0.1, 0.11], "4e-3": []}}
    return {"seeds": 12, "rates": rates, "rows": rows, "stability": None, "device": "a machine"}


def test_differences_are_paired_t_tests_with_holm_over_the_rows():
    results = made_up()
    found = all_versus(results, "validation_nll")
    assert set(found) == set(LEVELS) - {STANDARD}
    raw = {}
    for name, each in found.items():
        row = next(one for one in ROWS if one.name == name)
        mine, theirs = ([values(results, one, "validation_nll")[s] for s in SEEDS] for one in (row, BASE))
        test = stats.ttest_rel(mine, theirs)
        assert each["difference"] == pytest.approx(np.mean(mine) - np.mean(theirs))
        assert (each["ci_low"], each["ci_high"]) == pytest.approx(tuple(test.confidence_interval()), rel=1e-6)
        assert each["p"] == pytest.approx(test.pvalue, rel=1e-6)
        raw[name] = each["p"]
    least, most = min(raw, key=raw.get), max(raw, key=raw.get)
    assert found[least]["p_holm"] == pytest.approx(4 * raw[least])
    assert found[most]["p_holm"] >= raw[most]


def test_the_four_answers_say_what_the_runs_hold():
    noise, saves, adds, spreads = answers(made_up())
    assert noise.startswith("There is no sign of it")
    assert "surely lower under `elbo`, `lift` " in noise
    assert saves.startswith("Yes: `lift, less noise` (")
    assert "`bell` more than" in saves or "`bell` 1." in saves
    assert adds.startswith("Of `lift`, surely lower than the bound with Standard's noise, `lift` with less noise too")
    assert spreads.startswith("Yes: `bell` (Pitman")


def test_noise_that_helps_is_told_as_a_regulariser():
    levels = {STANDARD: 0.100, LESS: 0.110, "lift": 0.108}
    noise, saves, adds, _ = answers(made_up(levels=levels))
    assert noise.startswith("Yes, under `elbo`: less noise ends surely higher there; it ends surely lower under none")
    assert saves.startswith("Yes: `lift`")
    assert adds == "Not measured yet.", "lift has no runs with less noise"


def test_a_spread_at_another_learning_rate_answers_nothing_about_what_else_decides_it():
    results = made_up()
    results["rows"]["bell"]["learning_rate"] = 4e-3
    last = answers(results)[3]
    assert last.startswith("There is no sign of it: no row's differs surely at 0.002; `bell` differ, at learning rates")
    ratio = spread(results, Row("bell", STANDARD), "validation_nll")
    assert f"`bell` {ratio['value']:.2f} ({ratio['ci_low']:.2f} to {ratio['ci_high']:.2f}) at 0.004" in last


def test_compute_saved_is_read_off_standards_other_budgets():
    entry = saved(made_up(), "validation_nll")
    assert [point["multiple"] for point in entry["curve"]] == [0.75, 1, 1.5, 2]
    shares = {each["method"]: each["value"] for each in entry["methods"]}
    assert set(shares) == set(LEVELS) - {STANDARD}
    assert 1 / 1.5 < shares[RECOMMENDED.name] < 1
    assert saved(made_up(levels={LESS: 0.1}), "validation_nll") is None


def test_the_parts_of_the_bound_are_compared_with_standards_quarter_by_quarter():
    results = made_up()
    for name, shift in ((STANDARD, 0.0), ("lift", 0.01)):
        for run_ in results["rows"][name]["runs"]:
            own = 1e-6 * run_["seed"] * (1 + 100 * shift)
            run_["quarters"] = [0.01 + own, 0.02 + own, 0.03 + own, 0.04 + shift + own]
    results["rows"][STANDARD]["runs"][0].pop("quarters")
    lines = page.quarters_table(results).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| `standard` | 7 | 0.0100 (0.0100 to 0.0100) | 0.0200")
    assert lines[3].startswith("| `lift` | 8 | +0.0000 (+0.0000 to +0.0000) |")
    assert lines[3].endswith("| +0.0100 (+0.0100 to +0.0100) |")
    results["untuned_quarters"] = [0.25, 0.4, 0.6, 0.9]
    assert page.quarters_table(results).splitlines()[2] == "| untuned |  | 0.2500 | 0.4000 | 0.6000 | 0.9000 |"


def test_windows_stand_between_all_ratios_and_those_from_a_half():
    results = made_up(levels=LEVELS | {"window-generation": 0.095})
    plain = values(results, BASE, "validation_nll")
    assert page.windows_table(results) == "Not measured yet."
    results["windows"] = {"0.7": [run(STANDARD, s, plain[s] - 0.01 - 1e-6 * s) for s in plain], "0.85": []}
    lines = page.windows_table(results).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0", "0.5", "0.7"]
    assert lines[4].startswith("| 0.7 | 8 | 0.100")
    assert "| -0.0100 (-0.0100 to -0.0100) |" in lines[4]
    assert lines[4].endswith("| +0.010 (+0.010 to +0.010) |")
    results["windows"]["0.7"] = results["windows"]["0.7"][:1]
    assert "| -0.0100 | " in page.windows_table(results)


def test_diverged_runs_are_counted_where_they_are_left_out():
    results = made_up()
    bell, lift = (results["rows"][name]["runs"] for name in ("bell", "lift"))
    bell[0] = run(STANDARD, 1, None)
    lift[:] = [run(STANDARD, seed, None, forwards=7200) for seed in SEEDS]
    assert versus(results, Row("bell", STANDARD), BASE, "validation_nll")["n"] == len(SEEDS) - 1
    table = page.rows_table(results)
    assert "| `bell` | 0.002 | 7, 1 diverged |" in table
    assert "| `lift` | 0.002 | 0, 8 diverged | 1.50 |  |" in table
    assert "8 of 12 seeds each, of which 9 diverged" in page.status(results)
    assert len(answers(results)) == 4


def test_the_page_says_of_how_many_seeds_the_likelihood_is():
    results = made_up()
    assert "the decoder's likelihood is not measured yet;" in page.status(results)
    for row in results["rows"].values():
        for one in row["runs"]:
            if one["seed"] <= 3:
                one["metrics"]["duel_nll"] = {"value": 0.1}
    assert "8 of 12 seeds each; the decoder's likelihood is that of 3 seeds each;" in page.status(results)
    for one in results["rows"]["bell"]["runs"][:2]:
        del one["metrics"]["duel_nll"]
    assert "that of 1 to 3 seeds each;" in page.status(results)


def test_an_average_that_is_not_finite_has_no_value():
    runs = made_up()["rows"][STANDARD]["runs"][:2]
    runs[0]["averages"] = {"ema-0.98": {"metrics": {"validation_nll": {"value": None}}}, "tail-0.25": {"metrics": {}}}
    found = averages(runs)
    assert set(found) == {"ema-0.98"}
    assert set(found["ema-0.98"]) == {runs[1]["seed"]}


@pytest.mark.parametrize("seeds", [(), (1,), (1, 2), SEEDS], ids=len)
def test_the_page_is_written_whatever_is_finished(tmp_path, seeds):
    results = made_up(seeds=seeds)
    if not seeds:
        results |= {"rows": {}, "rates": {}}
    blank = (FOLDER / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(blank, encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page.write_page(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"{len(results['rows'])} of {len(ROWS)} rows, {len(seeds)} of 12 seeds each" in text
    assert text.count("Not measured yet.") == {0: 10, 1: 8, 2: 5}.get(len(seeds), 4)
    page.write_page(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text, "written again, it is the same"
    assert "nan" not in text
    assert (tmp_path / "compute_saved.png").is_file() == bool(seeds)


def test_the_committed_page_is_that_of_the_results(tmp_path):
    if not (FOLDER / "results.json").is_file():
        assert "<!-- answers -->\n<!-- end -->" in (FOLDER / "README.md").read_text(encoding="utf-8"), (
            "nothing measured"
        )
        return
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, block in page.blocks(results).items():
        assert f"<!-- {name} -->\n{block}\n<!-- end -->" in text
    for picture in re.findall(r"\]\((\w+\.png)\)", text):
        assert (FOLDER / picture).is_file()


def test_the_best_rate_is_the_least_mean_where_most_runs_ended():
    assert study.best_rate({"1e-3": [0.3, 0.1], "2e-3": [0.1, 0.2], "4e-3": [0.4, 0.4]}) == "2e-3"
    assert study.best_rate({"1e-3": [0.3, 0.3], "2e-3": [0.1]}) == "1e-3", "at the other one a run diverged"
    assert study.best_rate({"4e-3": [0.2], "1e-3": [0.2]}) == "1e-3", "the lowest of equal ones"
    with pytest.raises(ValueError, match="found none among 1e-3, 2e-3"):
        study.best_rate({"1e-3": [], "2e-3": []})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_forwards_of_a_view_are_those_of_standard_under_the_objective(objective):
    method = Method.parse(STANDARD, objective=build_objective(ObjectiveSettings(name=objective)))
    further = further_forwards(method, Uniform(), torch.full((16,), 40))
    assert Row(objective, STANDARD).forwards == pytest.approx(1 + further, abs=0.01)


def test_final_runs_wait_for_all_runs_of_the_tuning(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "command", lambda *words: pytest.fail("a run was started"))
    mine = study.Study(tmp_path)
    with pytest.raises(SystemExit, match=r"row 'standard': expected 3 runs of its tuning"):
        mine.final()
    file = mine.folder("tune", BASE) / "results.json"
    file.parent.mkdir(parents=True)
    runs = [run(STANDARD, s, 0.1, learning_rate=rate) for s in (101,) for rate in (1e-3, 2e-3, 4e-3)]
    file.write_text(json.dumps({"runs": runs[:-1]}), encoding="utf-8")
    with pytest.raises(SystemExit, match="--only tune"):
        mine.final()
    shutil.rmtree(tmp_path / "tune")


def test_the_final_runs_take_the_tuned_rate_and_the_seeds_that_did_not_tune(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(study, "command", lambda *words: said.append([str(word) for word in words]))
    mine = study.Study(tmp_path)
    for number, row in enumerate(ROWS):
        file = mine.folder("tune", row) / "results.json"
        file.parent.mkdir(parents=True)
        best = (1e-3, 2e-3, 4e-3)[number % 3]
        runs = [
            run(row.method, s, 0.1 + (rate != best), learning_rate=rate)
            for s in (101, 102)
            for rate in (1e-3, 2e-3, 4e-3)
        ]
        file.write_text(json.dumps({"runs": runs}), encoding="utf-8")
    mine.final()
    assert len(said) == len(ROWS) == 2 * len(OBJECTIVES)
    for number, (row, words) in enumerate(zip(ROWS, said, strict=True)):
        settings = load_recipe(words[1], words[2:-2])
        assert settings.base.trainer["learning_rate"] == (1e-3, 2e-3, 4e-3)[number % 3]
        assert settings.methods == [row.method]
        assert settings.base.objective.name == row.objective
        assert len(settings.seeds) >= 12
        assert not {101, 102} & set(settings.seeds)
        assert bool(settings.standard_at) == (row == BASE)
        assert settings.base.average.count == 2
        assert settings.base.epochs * row.forwards == pytest.approx(5, rel=0.002), "Standard's forwards"
