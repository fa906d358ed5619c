"""``stabledllm eval`` through the command line: killed, continued, on two ranks, refused, beside the untuned model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from stabledllm.evaluation import completing
from stabledllm.evaluation.untuned import difference, tuned_from
from stabledllm.models.adapters import LoRAOptions, add_lora
from stabledllm.models.loading import load_model
from stabledllm.tasks.scoring import score_number
from tests.cli.forked import command, ranks
from tests.cli.runner import assert_refused, in_process

# Drawn at random, so that a prompt's place must decide and nothing else.
ROWS = 8
EVAL = [
    "eval", "--data", "synthetic:easy", "--rows", str(ROWS), "--batch", "3", "--length", "24", "--steps", "24",
    "--block", "8", "--set", "temperature=0.8", "--set", "seed=5", "--pad-response-to", "8",
    "--likelihood", "stepmerge", "--likelihood.orders", "1", "--likelihood.segments", "2",
]  # fmt: skip


def result(folder: Path) -> dict:
    """``eval.json`` without what may differ: times, devices and the folder's own name."""
    record = json.loads((folder / "eval.json").read_text())
    record = {k: v for k, v in record.items() if k not in ("device", "devices")}
    record["config"].pop("out")
    for metrics in [record["metrics"], *([record["untuned"]["metrics"]] if record["untuned"] else [])]:
        for key in ("seconds", "tokens_per_second"):
            metrics["accuracy"]["decoding_stats"].pop(key)
    return record


def same(a: Path, b: Path) -> None:
    assert result(a) == result(b)
    for name in ("completions.jsonl", "nll.jsonl", "stepmerge.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole evaluation in ``whole``, and one killed in the middle of decoding in ``killed``."""
    folder = tmp_path_factory.mktemp("eval")
    torch.manual_seed(0)
    adapted = add_lora(load_model("tiny"), LoRAOptions(rank=2))
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save(folder / "adapter")
    process = command(*EVAL, "--model", "adapter", "--out", "killed", "--batch", "1", cwd=folder)
    journal = folder / "killed" / "journal" / "completions-0.jsonl"
    process.until(lambda: journal.is_file() and len(journal.read_bytes().splitlines()) > 4)
    process.kill()
    assert not (folder / "killed" / "eval.json").exists(), "killed before it finished"
    whole = in_process(*EVAL, "--model", "adapter", "--out", "whole", "--batch", "1", cwd=folder)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert not (folder / "whole" / "journal").exists()
    return folder


@pytest.mark.long
@pytest.mark.processes
def test_a_killed_evaluation_continues_and_decodes_nothing_twice(folder, monkeypatch):
    shutil.copytree(folder / "killed", folder / "continued")
    journal = folder / "continued" / "journal" / "completions-0.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"place": 7, "compl')
    done = {json.loads(line)["place"] for line in journal.read_bytes().splitlines()[1:-1]}
    assert 0 < len(done) < ROWS
    first, complete = [], completing.complete

    def counting(loaded, conversations, *arguments, **more):
        first.append(more["first"])
        return complete(loaded, conversations, *arguments, **more)

    monkeypatch.setattr(completing, "complete", counting)
    again = in_process(*EVAL, "--model", "adapter", "--batch", "1", "--out", "continued", cwd=folder)
    assert again.returncode == 0, again.stderr[-3000:]
    of_the_untuned = list(range(ROWS))
    assert first == [*(place for place in range(ROWS) if place not in done), *of_the_untuned]
    same(folder / "continued", folder / "whole")
    same(folder / "continued" / "untuned", folder / "whole" / "untuned")
    first.clear()
    before = (folder / "continued" / "eval.json").read_bytes()
    elsewhere = str((folder / "adapter").resolve())  # the same weights by another name
    third = in_process(*EVAL, "--model", elsewhere, "--batch", "1", "--out", "continued", cwd=folder)
    assert third.returncode == 0
    assert "already evaluated" in third.stdout
    assert not first
    assert (folder / "continued" / "eval.json").read_bytes() == before


@pytest.mark.processes
def test_two_ranks_continue_it_to_the_same_result(folder):
    """What one process began, two share; and each decodes only its part."""
    shutil.copytree(folder / "killed", folder / "two")
    shared = (*EVAL, "--model", "adapter", "--batch", "1", "--out", "two")
    for rank in ranks(lambda launched: command(*shared, cwd=folder, environment=launched)):
        ended = rank.ended()
        assert ended.returncode == 0, ended.stderr[-3000:]
    same(folder / "two", folder / "whole")
    same(folder / "two" / "untuned", folder / "whole" / "untuned")
    assert not list((folder / "two").glob("**/journal"))


@pytest.mark.processes
def test_the_untuned_model_stands_beside_with_paired_differences(folder):
    record = result(folder / "whole")
    assert record["untuned"]["model"] == "tiny"
    assert record["untuned"]["folder"] == "untuned"
    alone = in_process(*EVAL, "--model", "tiny", "--batch", "1", "--out", "alone", cwd=folder)
    assert alone.returncode == 0
    assert result(folder / "alone")["metrics"] == record["untuned"]["metrics"]
    ours, theirs = (
        [json.loads(line) for line in (folder / name / "completions.jsonl").read_text().splitlines()]
        for name in ("whole", "alone")
    )
    right = [[score_number(row["completion"], row["gold"]).correct is True for row in rows] for rows in (ours, theirs)]
    found = record["difference"]["accuracy"]
    assert found["gained"] == sum(a and not b for a, b in zip(*right, strict=True))
    assert found["lost"] == sum(b and not a for a, b in zip(*right, strict=True))
    assert found["value"] == pytest.approx((sum(right[0]) - sum(right[1])) / ROWS)
    metric = record["metrics"]["validation_nll"]["value"] - record["untuned"]["metrics"]["validation_nll"]["value"]
    assert record["difference"]["validation_nll"]["value"] == pytest.approx(metric)
    assert record["metrics"]["stepmerge_nll"]["forwards"] == 2 * ROWS
    assert record["difference"]["stepmerge_nll"]["n"] == ROWS
    reused = in_process(*EVAL, "--model", "adapter", "--batch", "1", "--beside", "alone", "--out", "whole", cwd=folder)
    assert "already evaluated" in reused.stdout, reused.stderr
    assert reused.stdout.count("model calls") == 0, "its evaluation is taken as it is"
    assert result(folder / "whole")["difference"] == record["difference"]
    assert result(folder / "whole")["untuned"]["folder"] == "alone"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--length", "32", "--steps", "32"], "decoding.length=24, found decoding.length=32"),
        (["--set", "seed=6"], "decoding.seed=5, found decoding.seed=6"),
        (["--likelihood.orders", "2"], "likelihood.orders=1, found likelihood.orders=2"),
        (["--rows", "7"], "rows=8, found rows=7"),
        (["--model", "tiny"], "model='adapter', found model='tiny'"),
        (["--data", "synthetic:hard"], "data.train='synthetic:easy', found data.train='synthetic:hard'"),
    ],
)
@pytest.mark.parametrize("where", ["whole", "killed"])
def test_another_evaluation_is_refused_in_a_sentence(folder, change, words, where):
    def files() -> list[tuple]:
        of_locks = ("run.lock", "claim.json")  # those of the killed command go with the next one
        found = (path for path in (folder / where).rglob("*") if path.is_file() and path.name not in of_locks)
        return sorted((path, path.stat().st_mtime_ns) for path in found)

    before = files()
    refused = in_process(*EVAL, "--model", "adapter", "--beside", "none", "--out", where, *change, cwd=folder)
    assert_refused(refused, words)
    assert files() == before


@pytest.mark.processes
def test_a_stored_evaluation_of_other_rows_is_not_taken_for_the_untuned(folder):
    base = in_process(*EVAL, "--rows", "4", "--out", "small", cwd=folder)
    assert base.returncode == 0
    refused = in_process(*EVAL, "--model", "adapter", "--beside", "small", "--out", "other", cwd=folder)
    assert_refused(refused, "small", "rows=4, found rows=8")
    lost = in_process(*EVAL, "--model", "adapter", "--beside", "nowhere", "--out", "other", cwd=folder)
    assert_refused(lost, "nowhere")
    assert not (folder / "other").exists(), "said before anything was decoded"


def test_what_a_run_started_from_is_found(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    stamp = tmp_path / "run" / "model" / "stabledllm.json"
    stamp.write_text(json.dumps({"model": "tiny"}))
    assert tuned_from(str(tmp_path / "run" / "model")) == "tiny"
    assert tuned_from("tiny") is None
    stamp.write_text(json.dumps({"model": "new:tiny"}))
    assert tuned_from(str(tmp_path / "run" / "model")) is None, "trained from scratch"
    stamp.write_text(json.dumps({"model": "gone/away"}))
    with pytest.raises(ValueError, match="--beside"):
        tuned_from(str(tmp_path / "run" / "model"))


def test_differences_are_paired_by_example():
    ours = [{"origin": str(i), "correct": v} for i, v in enumerate([True, True, False, None, True])]
    theirs = [{"origin": str(i), "correct": v} for i, v in enumerate([True, None, False, True, False])]
    found = difference(ours, theirs, "correct", "share")
    assert (found["value"], found["gained"], found["lost"]) == (pytest.approx(0.2), 2, 1)
    assert found["stderr"] == pytest.approx((sum((d - 0.2) ** 2 for d in (0, 1, 0, -1, 1)) / 4 / 5) ** 0.5)
    with pytest.raises(ValueError, match="same examples"):
        difference(ours, theirs[::-1], "correct", "share")
