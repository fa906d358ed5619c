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


def adaptation(folder: Path, arm: str, nll: float, *, whole: bool = True) -> Path:
    """What ``studies/real_model`` leaves of an arm; its model is there from the end of the run on."""
    write_json(folder / "adapt" / arm / "run.json", {"metrics": {"validation_nll": {"value": nll}}})
    if whole:
        (folder / "adapt" / arm / "model").mkdir()
    return folder / "adapt" / arm / "model"


def test_the_real_model_is_the_best_adapted_one_that_is_there(tmp_path):
    assert study.adapted(tmp_path) is None
    adaptation(tmp_path, "random", 1.0)
    adaptation(tmp_path, "shift", 2.0, whole=False)
    assert study.adapted(tmp_path) is None
    adaptation(tmp_path, "annealed", 4.0)
    assert study.adapted(tmp_path) == tmp_path / "adapt" / "annealed"
    best = adaptation(tmp_path, "no-shift", 3.0)
    assert study.adapted(tmp_path) / "model" == best


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
def test_on_the_real_model_every_row_is_fine_tuned_by_that_studys_recipe(tmp_path, monkeypatch, capsys, size):
    said = []
    monkeypatch.setattr(study, "command", lambda *words: said.append([str(word) for word in words]))
    mine = study.Study(tmp_path, size, real=tmp_path / "real")
    mine.on_real_model()
    assert not said
    assert "no adapted model there" in capsys.readouterr().out
    model = adaptation(tmp_path / "real", "annealed", 3.0)
    mine.on_real_model()
    assert len(said) == len(ROWS)
    for row, words in zip(ROWS, said, strict=True):
        settings = load_recipe(words[1], words[2:-2])
        base, data = settings.base, settings.base.data
        assert (base.model, base.objective.name, settings.methods) == (str(model), row.objective, [row.method])
        rows = [Path(str(each)).stem for each in (data.train, data.validation, data.test)]
        assert rows == ["tune", "held_out", "problems"]
        assert base.steps == (round(36 / row.forwards) if size is study.FULL else 2)
        assert settings.seeds == list(size.real)
        assert base.trainer["bf16"] == (not emulates(torch.bfloat16))
        assert Path(settings.out) == mine.folder("real", row)


def test_the_table_of_the_real_model_is_of_its_own_runs(small):
    runs = {BASE.name: [3.0, 3.1, 3.2], "bell": [2.9, 3.05, 3.0]}
    for row in ROWS:
        if row.name in runs:
            found = [
                {"method": row.method, "seed": seed, "metrics": {"validation_nll": {"value": nll}}}
                for seed, nll in enumerate(runs[row.name])
            ]
            untuned = {"metrics": {"validation_nll": {"value": 3.5}}}
            write_json(small.folder("real", row) / "results.json", {"runs": found, "device": "it", "untuned": untuned})
    small.write()
    text = (small.out / "page" / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- real -->")[1].split("<!-- end -->")[0]
    assert "| `bell` | 3 | 2.983 (2.794 to 3.173) | -0.117 (" in table
    assert "Before fine-tuning the bound is 3.500." in table
    assert table.count("\n| `") == 2
