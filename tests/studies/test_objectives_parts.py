"""The study of objectives: what its parts hand to each other, with its commands faked."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from studies.objectives import study
from studies.objectives.rows import BASE, ROWS

from stabledllm.config import load_recipe
from stabledllm.data.bundle import load_rows
from stabledllm.evaluation.validation import validation_nll
from stabledllm.forward.meter import LossMeter
from stabledllm.models.loading import load_model
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.runtime.device import emulates
from stabledllm.runtime.files import read_json, write_json
from tests.cli.runner import in_process

DUEL = {"value": 0.25, "stderr": 0.1}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study in a folder of its own, whose evaluations leave what ``stabledllm eval`` leaves."""

    def evaluated(*words: object) -> None:
        assert words[0] == "eval"
        (tmp_path / "words.json").write_text(json.dumps([*map(str, words)]))
        write_json(Path(words[words.index("--out") + 1]) / "eval.json", {"metrics": {"duel_nll": DUEL}})

    monkeypatch.setattr(study, "command", evaluated)
    return study.Study(tmp_path, study.SMALL)


def test_a_page_is_written_before_anything_is_measured(small):
    small.write()
    page = (small.out / "page" / "README.md").read_text(encoding="utf-8")
    assert f"0 of {len(ROWS)} rows" in page
    assert page.count("Not measured yet.") > 4


def test_the_decoder_s_likelihood_is_kept_beside_a_finished_run(small, tmp_path):
    folder = small.folder("final", BASE)
    run = {"method": BASE.method, "seed": 1, "metrics": {"validation_nll": {"value": 0.1}}, "forward_passes": 8}
    base = {"trainer": {"learning_rate": 1e-3}}
    record = {"config": {"base": base}, "runs": [run], "versions": {}, "device": "a machine", "untuned": None}
    write_json(folder / "results.json", record)
    (folder / "runs" / BASE.method / "seed-1" / "model").mkdir(parents=True)
    small.likelihood()
    small.write()
    (kept,) = read_json(small.out / "page" / "results.json")["rows"][BASE.name]["runs"]
    assert kept["metrics"] == run["metrics"] | {"duel_nll": DUEL}
    assert kept["forward_passes"] == 8
    words = json.loads((tmp_path / "words.json").read_text())
    words[words.index("--model") + 1] = "tiny"
    told = in_process(*words, "--dry-run", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "does nothing" not in told.stdout + told.stderr
    assert "at most 4 of synthetic:hard" in told.stdout
    decoding = load_recipe(str(study.RECIPE)).base.decoding
    assert {f"decoding.{key}={getattr(decoding, key)}" for key in ("length", "steps", "block")} < set(words)


def test_the_parts_of_the_bound_are_kept_beside_a_finished_run_and_add_up_to_it(small, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    data = "{train: 'synthetic:hard', train_rows: 32, validation_rows: 8, pad_response_to: 40}"
    recipe.write_text(f"base: {{model: tiny, data: {data}}}\nmethods: [standard]\nseeds: [1]\n", encoding="utf-8")
    monkeypatch.setattr(study, "RECIPE", recipe)
    folder = small.folder("final", BASE)
    run = {"method": BASE.method, "seed": 1, "metrics": {"validation_nll": {"value": 0.1}}, "forward_passes": 8}
    record = {"config": {"base": {"trainer": {"learning_rate": 1e-3}}}, "runs": [run], "versions": {}}
    write_json(folder / "results.json", record | {"device": "a machine", "untuned": None})
    shutil.copytree(str(files("stabledllm") / "assets" / "tiny"), folder / "runs" / BASE.method / "seed-1" / "model")
    small.quarters()
    small.write()
    (kept,) = read_json(small.out / "page" / "results.json")["rows"][BASE.name]["runs"]
    loaded, data = load_model("tiny"), load_recipe(str(recipe)).base.data
    rows, _ = load_rows(data.train, loaded.tokenizer, data, "validation", 8)
    meter = LossMeter(loaded, rows, Objective())
    assert sum(kept["quarters"]) == pytest.approx(validation_nll(meter, 4).value, rel=1e-12)
    high = meter.losses(torch.arange(8), torch.full((8,), 0.9), Method.parse("fixedcount"), Key(0, 0)).mean()
    assert kept["quarters"][3] == pytest.approx(float(high) / 4, rel=0.5)
    assert kept["quarters"][3] == max(kept["quarters"]), "more is hidden at higher ratios"


def test_the_windows_are_trained_as_the_rows_are(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(study, "command", lambda *words: said.append([str(word) for word in words]))
    made = study.Study(tmp_path)
    made.windows()
    assert len(said) == len(made.size.lows)
    for low, words in zip(made.size.lows, said, strict=True):
        settings = load_recipe(words[1], words[2:-2])
        assert settings.base.objective.window == [low, 1]
        assert settings.seeds == [*range(1, 9)]
        assert (settings.base.data.test_rows, settings.base.eval_draws, settings.base.trainer["learning_rate"]) == (
            96, 4, 2e-3,
        )  # fmt: skip


@pytest.mark.parametrize("size", [study.FULL, study.SMALL], ids=["full", "rehearsal"])
def test_the_real_model_is_adapted_by_some_rows(tmp_path, monkeypatch, capsys, size):
    said = []
    monkeypatch.setattr(study, "command", lambda *words: said.append([str(word) for word in words]))
    mine = study.Study(tmp_path, size, real=tmp_path / "real")
    mine.on_real_model()
    assert not said
    assert "no converted model there" in capsys.readouterr().out
    (model := tmp_path / "real" / "models" / "shift").mkdir(parents=True)
    mine.on_real_model()
    assert not said, "its rows are not written yet"
    write_json(tmp_path / "real" / "text" / "text.json", {})
    mine.on_real_model()
    chosen = [row for row in ROWS if row.name in size.real_rows]
    assert len(said) == len(chosen) == len(size.real_rows), "every row that is named is there"
    steps = 30 if size is study.FULL else 2
    for row, words in zip(chosen, said, strict=True):
        settings = load_recipe(words[1], words[2:-2])
        base, data = settings.base, settings.base.data
        assert (base.model, base.objective.name, settings.methods) == (str(model), row.objective, [row.method])
        assert [Path(str(each)).stem for each in (data.train, data.validation)] == ["adapt", "held_out"]
        assert (base.steps, data.test_rows, settings.seeds) == (steps, 0, list(size.real))
        assert base.trainer["bf16"] == (not emulates(torch.bfloat16))
        assert settings.standard_at == (list(size.real_multiples) if row == BASE else [])
        assert Path(settings.out) == mine.folder("real", row)


def test_the_table_of_the_real_model_is_of_its_own_runs(small):
    runs = {BASE.name: [3.0, 3.1, 3.2], "bell": [2.9, 3.05, 3.0]}
    for row in ROWS:
        if row.name in runs:
            found = [
                {"method": row.method, "seed": seed, "metrics": {"validation_nll": {"value": nll}}}
                | {"forward_passes": 240}
                for seed, nll in enumerate(runs[row.name])
            ]
            untuned = {"metrics": {"validation_nll": {"value": 3.5}}}
            record = {"runs": found, "device": "it", "untuned": untuned}
            if row == BASE:
                record["reference_runs"] = [
                    run | {"method": f"standard@{times}x", "forward_passes": times * 240}
                    | {"metrics": {"validation_nll": {"value": run["metrics"]["validation_nll"]["value"] - times / 5}}}
                    for run in found for times in (2, 3)
                ]  # fmt: skip
            write_json(small.folder("real", row) / "results.json", record)
    small.write()
    text = (small.out / "page" / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- real -->")[1].split("<!-- end -->")[0]
    assert "| `bell` | 3 | 2.983 (2.794 to 3.173) | -0.117 (" in table
    assert "Before these steps the bound is 3.500." in table
    assert "| `standard` | 3 | 3.100 (" in table, "its runs at other budgets are those of the curve alone"
    assert table.count("\n| `") == 2
    needs = {line.split("`")[1]: line.rstrip(" |").split("|")[-1].strip() for line in table.splitlines() if "`" in line}
    assert needs["bell"].startswith("0.82 ("), "Standard comes to its bound with 1.2 times its forwards"
