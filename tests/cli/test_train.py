"""Training through the command line: resume after a kill, refuse another method, evaluate what was saved."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.cli.forked import command
from tests.cli.runner import assert_refused, in_process

SMALL = [
    "batch=8", "steps=12", "save_every=3", "eval_every=6", "log_every=1", "data.train_rows=40",
    "data.validation_rows=8", "data.test_rows=4", "ppots.rows=4", "ppots.rates=6", "ppots.masks=2", "ppots.starts=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = in_process("train", "sft-synthetic", *SMALL, "method=ppots+mirror", "out=run", cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "run"


def without_times(record: dict) -> dict:
    kept = {k: v for k, v in record.items() if k not in ("seconds", "config")}
    accuracy = {k: v for k, v in record["metrics"]["accuracy"].items() if k != "decoding_stats"}
    return kept | {"metrics": record["metrics"] | {"accuracy": accuracy}}


@pytest.mark.processes
def test_a_run_leaves_what_it_promises(whole):
    record = json.loads((whole / "run.json").read_text())
    assert record["schema"] == "stabledllm/run/1"
    assert record["steps"] == 12
    assert record["forward_passes"] == 12 * 8 * 2
    assert record["probe_forward_passes"] > 0
    assert set(record["metrics"]["validation_nll"]) == {"value", "stderr", "n", "unit", "ci_low", "ci_high"}
    assert {"value", "stderr", "ci_low", "ci_high", "decoding", "decoding_stats"} <= set(record["metrics"]["accuracy"])
    assert len((whole / "completions.jsonl").read_text().splitlines()) == 4
    last = record["history"][-1]
    assert {"loss", "grad_norm", "ess", "masked_share", "eval_nll", "eval_nll_stderr"} <= set(last)
    assert last["eval_nll"] == record["metrics"]["validation_nll"]["value"], "fixed noise: the same number again"
    assert {"torch", "transformers"} <= set(record["versions"])
    assert (whole / "p_of_t.json").is_file()
    assert (whole / "checkpoint-6" / "p_of_t.json").read_bytes() == (whole / "p_of_t.json").read_bytes()


@pytest.mark.processes
def test_killed_run_continues_to_the_same_bits(whole, tmp_path):
    process = command("train", "sft-synthetic", *SMALL, "method=ppots+mirror", "out=run", cwd=tmp_path)
    process.until((tmp_path / "run" / "checkpoint-3" / "stabledllm.json").exists)
    process.kill()
    assert not (tmp_path / "run" / "run.json").exists(), "killed before it finished"
    # A checkpoint that was cut off while it was saved must be passed over.
    cut = tmp_path / "run" / "checkpoint-99"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"half")
    result = in_process("train", "sft-synthetic", *SMALL, "method=ppots+mirror", "out=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "resuming from" in result.stdout
    ours, theirs = (json.loads((f / "run.json").read_text()) for f in (tmp_path / "run", whole))
    assert without_times(ours) == without_times(theirs)
    a, b = (load_file(f / "model" / "model.safetensors") for f in (tmp_path / "run", whole))
    assert all((a[name] == b[name]).all() for name in b)


@pytest.mark.processes
def test_a_finished_run_is_not_repeated_and_another_method_is_refused(whole):
    before = (whole / "run.json").stat().st_mtime_ns
    again = in_process("train", "sft-synthetic", *SMALL, "method=ppots+mirror", "out=run", cwd=whole.parent)
    assert again.returncode == 0
    assert "already finished" in again.stdout
    assert (whole / "run.json").stat().st_mtime_ns == before
    assert_refused(in_process("train", "sft-synthetic", *SMALL, "method=mirror", "out=run", cwd=whole.parent), "method")
    (whole / "run.json").rename(whole / "kept.json")
    try:
        other = in_process("train", "sft-synthetic", *SMALL, "method=mirror", "out=run", cwd=whole.parent)
    finally:
        (whole / "kept.json").rename(whole / "run.json")
    assert_refused(other, "expected to resume with method='ppots+mirror'", "found method='mirror'")


@pytest.mark.processes
def test_the_saved_model_evaluates_and_generates(whole):
    model = str(whole / "model")
    result = in_process("eval", "--model", model, "--rows", "4", "--out", "eval", cwd=whole.parent)
    assert result.returncode == 0, result.stderr[-2000:]
    record = json.loads((whole.parent / "eval" / "eval.json").read_text())
    assert record["metrics"]["accuracy"]["n"] == 4
    generated = in_process("generate", "7+5-3=?", "--model", model, "--length", "16", "--steps", "16", cwd=whole.parent)
    assert generated.returncode == 0
    assert generated.stdout.startswith("7+5-3=?\n")
