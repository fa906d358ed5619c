"""A study's finished work, packed and unpacked: nothing of it is done again, and nothing unfinished is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from stabledllm.runtime.files import read_json, write_json
from studies import finished
from tests.cli.runner import in_process

RECIPE = {
    "base": {
        "model": "tiny",
        "data": {"train": "synthetic", "train_rows": 8, "validation_rows": 2, "test_rows": 1},
        "batch": 2,
        "steps": 2,
        "decoding": {"length": 8, "steps": 4, "block": 8},
    },
    "methods": ["standard", "mirror"],
    "seeds": [1],
    "out": "study/runs-of-it",
}


def test_an_experiment_goes_on_from_the_packed_runs(tmp_path: Path):
    write_json(tmp_path / "recipe.yaml", RECIPE)
    first = tmp_path / "first"
    first.mkdir()
    done = in_process("experiment", str(tmp_path / "recipe.yaml"), "methods=[standard]", cwd=first)
    assert done.returncode == 0, done.stderr
    unfinished = first / "study" / "runs-of-it" / "runs" / "standard" / "seed-2" / "history.jsonl"
    unfinished.parent.mkdir()
    unfinished.write_text("{}\n")
    assert finished.main(["pack", str(first / "study"), str(tmp_path / "packed.tar.xz")]) == 0

    second = tmp_path / "second"
    second.mkdir()
    assert finished.main(["unpack", str(tmp_path / "packed.tar.xz"), str(second / "study")]) == 0
    run = Path("study") / "runs-of-it" / "runs" / "standard" / "seed-1"
    assert not (second / unfinished.relative_to(first)).exists(), "a run that has not ended begins anew"
    assert not (second / run / "model").exists()
    done = in_process("experiment", str(tmp_path / "recipe.yaml"), cwd=second)
    assert done.returncode == 0, done.stderr
    before, after = (read_json(folder / run / "run.json") for folder in (first, second))
    assert after == before, "the finished run was not made again"
    results = read_json(second / "study" / "runs-of-it" / "results.json")
    assert {run["method"] for run in results["runs"]} == {"standard", "mirror"}


def test_a_named_model_is_kept_and_nothing_is_replaced(tmp_path: Path):
    folder, other = tmp_path / "study", tmp_path / "other"
    for name in ("run/model/config.json", "run/checkpoint-2/state.json", "run/run.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, {"of": name})
    (folder / "run" / "model" / "weights.bin").write_bytes(b"weights")
    other.mkdir()
    (other / "run").mkdir()
    write_json(other / "run" / "run.json", {"own": True})
    finished.pack(folder, tmp_path / "packed.tar.xz", ["run/model"])
    finished.unpack(tmp_path / "packed.tar.xz", other)
    assert read_json(other / "run" / "run.json") == {"own": True}
    assert (other / "run" / "model" / "weights.bin").read_bytes() == b"weights"
    assert not (other / "run" / "checkpoint-2").exists()


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_a_missing_source_is_named(tmp_path: Path, capsys, command):
    source = tmp_path / "nothing"
    assert finished.main([command, str(source), str(tmp_path / "there")]) == 2
    assert capsys.readouterr().err == f"finished: expected {source}, found none.\n"
