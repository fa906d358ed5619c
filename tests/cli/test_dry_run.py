"""``--dry-run`` checks, says what would happen, and leaves every file as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runner import assert_refused
from tests.cli.runner import in_process as call

COMMANDS = {
    "train sft-synthetic --steps 7 method=ppots": ["7 steps of 32 rows by ppots", "probe", "run.json"],
    "experiment quickstart --seeds 1,2,3": ["4 methods x 3 seeds = 12 runs", "mirror: 16 rows"],
    "train sft-synthetic --steps 7 method=mirror objective.name=gift": ["by mirror: at most 672 forward passes"],
    "experiment quickstart --seeds 1,2 --learning-rates 1e-3,2e-3 --max-grad-norms 1,0": [
        "4 methods x 2 learning rates x 2 clipping norms x 2 seeds = 32 runs",
        "runs/METHOD/lr-R_clip-C/seed-N",
    ],
    "fit --method ppots+mirror": ["6,272 forward passes", "p_of_t.json"],
    "decompose --methods standard,mirror --gradient": ["of 2 methods", "backward passes"],
    "recommend rows=4": ["runs/recommend (new)", "backward passes"],
    "eval --rows 8 --length 40": ["at most 32 forward passes", "completions of 40 tokens in 40"],
    "generate 7+15-3=? --length 8": ["1 prompt, 8 tokens each", "nothing: completions are printed"],
    "generate --image circle --steps 4": ["1 picture in 4 model calls"],
}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_written(tmp_path, command):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine.txt").write_text("kept")
    before = everything(tmp_path)
    result = call(*command.split(), "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert everything(tmp_path) == before
    text = " ".join(result.stdout.split())
    assert "nothing was loaded or written" in text
    assert "memory" in text
    for part in COMMANDS[command]:
        assert part in text, result.stdout


def test_without_rows_to_evaluate_on_it_does_not_say_that_some_are_evaluated(tmp_path):
    (tmp_path / "mine.jsonl").write_text("".join(f'{{"prompt": "{i}?", "response": "{i}"}}\n' for i in range(20)))
    command = ["train", "sft", "model=tiny", "data.train=mine.jsonl", "--dry-run"]
    text = " ".join(call(*command, "data.validation_share=0", cwd=tmp_path).stdout.split())
    assert "no validation: every row is trained on" in text
    assert "evaluate nothing, as there are no validation or test rows" in text
    text = " ".join(call(*command, cwd=tmp_path).stdout.split())
    assert "validation: 0.1 of them, held out" in text
    assert "NLL of at most" in text
    assert "completions of" not in text


def test_it_fits_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = call("train", "sft-synthetic", "--dry-run", cwd=tmp_path).stdout.splitlines()
    assert max(map(len, lines[1:])) <= 60


def test_the_memory_is_that_of_plan(tmp_path):
    planned = call("plan", "gsm8k/llada-8b", cwd=tmp_path).stdout
    needed = next(line.split()[-2] for line in planned.splitlines() if "needed per device" in line)
    dry = call("train", "gsm8k/llada-8b", "data.train=gsm8k:x.jsonl", "--dry-run", cwd=tmp_path)
    assert_refused(dry, "x.jsonl")
    row = json.dumps({"question": "1+1?", "answer": "#### 2"})
    (tmp_path / "x.jsonl").write_text(f"{row}\n")
    dry = call("train", "gsm8k/llada-8b", "data.train=gsm8k:x.jsonl", "--dry-run", cwd=tmp_path)
    assert f"about {needed} GiB per device" in " ".join(dry.stdout.split()), dry.stderr


def test_mistakes_are_told_as_ever(tmp_path):
    result = call("decompose", "--data", "nope.jsonl", "rows=x", "--dry-run", cwd=tmp_path)
    assert_refused(result, "2 mistakes", "key 'rows'", "nope.jsonl")
    assert_refused(call("fit", "--method", "mirror", "--dry-run", cwd=tmp_path), "expected a method with 'ppots'")
    assert_refused(call("train", "quickstart", "--dry-run", cwd=tmp_path), "found an experiment")


def test_a_file_that_is_there_is_refused(tmp_path):
    (tmp_path / "there.jsonl").write_text("kept")
    result = call("generate", "hi", "--out", "there.jsonl", "--dry-run", cwd=tmp_path)
    assert_refused(result, "there.jsonl")
    assert (tmp_path / "there.jsonl").read_text() == "kept"


def test_a_folder_with_work_in_it_is_said(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    result = call("train", "sft-synthetic", "--out", "out", "--dry-run", cwd=tmp_path)
    assert "with 1 finished run, which would not be repeated" in " ".join(result.stdout.split()), result.stderr
    (tmp_path / "out" / "decomposition.json").write_text("{}")
    result = call("decompose", "--out", "out", "--dry-run", cwd=tmp_path)
    assert "which would be written over" in " ".join(result.stdout.split())
