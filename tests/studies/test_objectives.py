"""The study of objectives: what its parts hand to each other, with its commands faked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.objectives import study
from studies.objectives.rows import BASE, ROWS

from stabledllm.config import load_recipe
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
