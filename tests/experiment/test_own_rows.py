"""One's own rows: the recipe ``sft``, all of them trained on, and what is found in them before training."""

from __future__ import annotations

import json

import pytest

from tests.cli.runner import assert_refused, in_process

SMALL = ["steps=2", "batch=4", "log_every=1", "trainer.learning_rate=1e-3"]
SFT = ["sft", "model=tiny", "data.train=mine.jsonl"]


@pytest.fixture
def folder(tmp_path):
    rows = [{"prompt": f"{i}+1=?", "response": f"#### {i + 1}"} for i in range(24)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run_of(folder, name: str) -> dict:
    return json.loads((folder / name / "run.json").read_text())


def test_sft_needs_a_model_and_rows_alone(folder):
    result = in_process("train", *SFT, *SMALL, cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    run = run_of(folder, "runs/sft")
    assert "validation_nll" in run["metrics"]
    assert any(
        "of 24 rows held out of training (data.validation_share=0.1; 0 trains on" in one for one in run["data_notes"]
    )
    assert run["config"]["data"]["pad_response_to"] == 1
    assert_refused(in_process("train", "sft", cwd=folder), "2 mistakes", "write model=tiny", "write data.train=PATH")


def test_every_row_is_trained_on_and_a_killed_run_goes_on(folder):
    whole = [*SFT, *SMALL, "data.validation_share=0", "save_every=1", "eval_every=null"]
    result = in_process("train", *whole, "out=whole", cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "24 to train on, none held out" in result.stdout
    assert "data.validation_share=0 trains on every row" in result.stdout
    assert "does nothing" not in result.stdout, "eval_every=null is never"
    run = run_of(folder, "whole")
    assert run["metrics"] == {}
    assert any(note.startswith("train: 24 rows") for note in run["data_notes"])
    assert not any("eval_nll" in line for line in run["history"])
    (folder / "whole" / "run.json").unlink()
    again = in_process("train", *whole, "out=whole", cwd=folder)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "resuming from" in again.stdout
    assert run_of(folder, "whole")["history"] == run["history"]


def test_rows_for_evaluation_may_still_be_given(folder):
    rows = [{"prompt": f"{i}+2=?", "response": f"#### {i + 2}"} for i in range(4)]
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["data.validation_share=0", "data.validation=held.jsonl", "out=held", "eval_every=1"]
    result = in_process("train", *SFT, *SMALL, *more, cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    run = run_of(folder, "held")
    assert run["metrics"]["validation_nll"]["n"] == 4
    assert any(note.startswith("train: 24 rows") for note in run["data_notes"])
    assert any("eval_nll" in line for line in run["history"])


def test_a_step_of_more_rows_than_there_are_is_refused(folder):
    result = in_process("train", *SFT, "batch=64", "out=x", cwd=folder)
    assert_refused(
        result, "key 'batch': expected at most as many rows per step as there are to train on, 2", "found 64"
    )
    assert not (folder / "x").exists()


def test_an_experiment_without_evaluation_rows_compares_accuracies(folder):
    rows = [{"prompt": f"{i}+3=?", "response": f"#### {i + 3}"} for i in range(2)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["extends: sft", "model: tiny", "data: {train: mine.jsonl, test: test.jsonl, validation_share: 0}"]
    base += ["steps: 1", "batch: 4", "eval_every: 1", "decoding: {length: 4}"]
    recipe = "base: {" + ", ".join(base) + "}\nmethods: [standard, lowdisc]\nseeds: [1, 2]\nout: both\n"
    (folder / "both.yaml").write_text(recipe)
    result = in_process("experiment", "both.yaml", "--jobs", "1", cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    results = json.loads((folder / "both" / "results.json").read_text())
    assert {entry["metric"] for entry in results["summary"]} == {"accuracy"}
    assert "accuracy" in results["untuned"]["metrics"]
    assert "validation_nll" not in results["untuned"]["metrics"]
    report = in_process("report", "both", cwd=folder)
    assert report.returncode == 0, report.stderr[-2000:]
    again = in_process("experiment", "both.yaml", "base.untuned=false", "--jobs", "1", cwd=folder)
    assert again.returncode == 0, again.stderr[-2000:]
    kept = json.loads((folder / "both" / "results.json").read_text())
    assert kept["untuned"] == results["untuned"]  # measured before: not lost by a later command without it
    assert_refused(
        in_process("experiment", "both.yaml", "base.data.test=null", "out=none", cwd=folder),
        "rows to compare methods on",
    )


def test_load_says_what_is_in_the_rows(folder):
    with (folder / "mine.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "long", "response": "2" * 200}) + "\n")
    result = in_process("validate", *SFT, "data.max_len=64", "data.validation_share=0", "--load", cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    for words in (
        "model tiny: family tiny (masked diffusion), 920,704 weights",
        "read 25 rows as prompt-response from mine.jsonl",
        "dropped 1 longer than max_len=64",
        "rows: 24 to train on, 0 to evaluate on, 0 to test; tokens of a training row: ",
        "first row: mine.jsonl:1",
        "  prompt    <user>0+1=?<assistant>",
        "  response  #### 1<eos>",
        "in order",
    ):
        assert words in result.stdout, words
    assert sorted(path.name for path in folder.iterdir()) == ["mine.jsonl"], "nothing is written"


def test_any_row_is_told_and_with_load_those_of_a_large_file_too(folder):
    with (folder / "mine.jsonl").open("a") as file:
        file.write("{broken\n")
    assert_refused(in_process("validate", *SFT, cwd=folder), "mine.jsonl:25", "broken JSON")
    assert_refused(in_process("train", *SFT, "out=out", cwd=folder), "mine.jsonl:25", "broken JSON")
    with (folder / "mine.jsonl").open("a") as file:
        file.write("\n" * (1 << 20))
    assert in_process("validate", *SFT, cwd=folder).returncode == 0
    assert_refused(in_process("validate", *SFT, "--load", cwd=folder), "mine.jsonl:25", "broken JSON")
    assert_refused(in_process("validate", "sft", "model=tiny", "--load", cwd=folder), "write data.train=PATH")
