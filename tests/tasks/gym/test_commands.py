"""The commands on rows of reasoning-gym, and its scores of completions."""

from __future__ import annotations

import json
import re

import pytest

from stabledllm.tasks.gym.task import TASK
from stabledllm.tasks.task import TaskOptions
from tests.cli.runner import ROOT, assert_refused, in_process
from tests.fakes.tasks import write

pytest.importorskip("reasoning_gym", reason="the package reasoning-gym is not installed")
SMALL = [
    "data.train_rows=16", "data.validation_rows=4", "data.test_rows=3", "steps=2", "eval_every=2", "save_every=2",
    "batch=4", "decoding.length=8", "decoding.steps=4", "decoding.block=8",
]  # fmt: skip


def row(where: str, place: int = 0) -> dict:
    return TASK.load(where, "test", TaskOptions(rows=place + 1))[place]


def scores(completion: str, gold: object) -> list[tuple]:
    both = [TASK.score(completion, gold, flexible=flexible) for flexible in (False, True)]
    return [(score.parsed, score.correct, score.credit) for score in both]


def test_right_is_a_score_of_one_and_the_credit_is_kept():
    gold = row("chain_sum")["gold"]
    right = gold["answer"]
    assert scores(f" {right}\n", gold) == [(right, True, 1.0)] * 2
    assert scores(f"well: <answer>{right}</answer>", gold)[1] == (right, True, 1.0)
    assert scores(f"so\n#### {right}", gold)[1] == (right, True, 1.0)
    assert scores(f"The answer is: {right}", gold)[1] == (right, True, 1.0)
    assert scores("99999", gold) == [("99999", False, 0.0)] * 2
    assert scores(" \n", gold) == [(None, None, 0.0)] * 2
    parsed, correct, credit = scores(f"it is {right}", gold)[0]
    assert (parsed, correct) == (f"it is {right}", False)
    assert 0 < credit < 1, "the package's share of the answer in what was written"
    _, correct, credit = scores(f"{right}?", gold)[0]
    assert correct is False, "nearly right is not right"
    assert 0.5 < credit < 1


def test_a_scorer_that_fails_on_an_answer_gives_nothing_for_it():
    gold = row("prime_factorization")["gold"]
    assert scores("none of them", gold) == [("none of them", False, 0.0)] * 2


@pytest.mark.parametrize(
    ("name", "answer"),
    [("complex_arithmetic", "nan"), ("complex_arithmetic", "3 + nani"), ("coin_flip", "1e999999999")],
)
def test_what_is_no_number_that_can_be_compared_is_wrong(name, answer):
    assert scores(answer, row(name)["gold"])[0] == (answer, False, 0.0)


def test_the_wrong_answer_of_two_is_wrong():
    items = [row("game_of_life_halting", place)["gold"] for place in range(6)]
    assert {gold["answer"] for gold in items} == {"True", "False"}
    for gold in items:
        wrong = "False" if gold["answer"] == "True" else "True"
        assert scores(gold["answer"], gold)[0][1:] == scores(f"{gold['answer'].lower()}.", gold)[0][1:] == (True, 1.0)
        assert scores(wrong, gold)[0] == (wrong, False, 0.0)
        assert scores("I do not know", gold)[0][1:] == (False, 0.0)


def test_the_beginning_of_a_probability_is_not_the_probability():
    gold = next(item for item in (row("coin_flip", place)["gold"] for place in range(9)) if len(item["answer"]) > 6)
    assert scores(gold["answer"], gold)[0][1:] == (True, 1.0)
    for part in ("0", gold["answer"][:4]):
        _, correct, credit = scores(part, gold)[0]
        assert correct is False
        assert 0 < credit < 1


def test_a_right_answer_of_many_numbers_is_right():
    gold = row("number_sorting,min_numbers=400,max_numbers=420")["gold"]
    assert len(gold["answer"]) > 2000
    assert scores(gold["answer"], gold)[0] == (gold["answer"], True, 1.0)


def test_what_a_model_wrote_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("countdown", "spiral_matrix", "simple_integration"):
        _, correct, _ = scores("open('there', 'w')", row(name)["gold"])[0]
        assert correct is False
    assert not list(tmp_path.iterdir())
    assert eval("1+1") == 2


@pytest.mark.parametrize("name", ["arc_agi", "rearc", "graph_color", "knights_knaves", "countdown"])
def test_an_item_scores_alike_from_a_file(name):
    example = row(name)
    back, response = json.loads(json.dumps(example["gold"])), example["messages"][1]["content"]
    assert scores(response, back) == scores(response, example["gold"])
    assert scores(response, back)[0][1] is True


def test_rescore_gives_the_mean_credit(tmp_path):
    golds = [row("chain_sum", place)["gold"] for place in range(3)]
    rows = [{"completion": text, "gold": gold} for text, gold in zip([golds[0]["answer"], "", "7"], golds, strict=True)]
    write(tmp_path / "in.jsonl", rows)
    result = in_process("rescore", "--task", "reasoning-gym", "in.jsonl", "--out", "out.jsonl", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "3 rows; strict 0.3333 correct" in result.stdout
    assert "1 without an answer; mean credit 0.3333)" in result.stdout
    back = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(each["correct"], each["credit"]) for each in back] == [(True, 1.0), (None, 0.0), (False, 0.0)]
    again = in_process("rescore", "--task", "reasoning-gym", "out.jsonl", "--out", "again.jsonl", cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_rescore_names_a_row_of_an_unknown_set(tmp_path):
    write(tmp_path / "in.jsonl", [{"completion": "5", "gold": {"answer": "5", "metadata": {"source_dataset": "sums"}}}])
    result = in_process("rescore", "--task", "reasoning-gym", "in.jsonl", "--out", "out.jsonl", cwd=tmp_path)
    assert_refused(result, "in.jsonl:1", "found one of 'sums'")


PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?m)^stabledllm (train .*)$", PAGE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_are_valid(tmp_path, command):
    result = in_process(*command.split(), "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_validate_tells_a_wrong_key_at_once_and_loads_rows(tmp_path):
    wrong = in_process("validate", "sft-synthetic", "data.train=reasoning-gym:chain_sum,max_term=3", cwd=tmp_path)
    assert_refused(wrong, "did you mean 'max_terms'")
    words = ["data.train=reasoning-gym:gsm_symbolic,size=40", "data.validation_rows=8", "data.test_rows=4"]
    good = in_process("validate", "sft-gsm-symbolic", *words, "--load", cwd=tmp_path)
    assert good.returncode == 0, good.stderr


@pytest.mark.slow
def test_train_and_evaluate(tmp_path):
    spec = "reasoning-gym:n_queens"
    result = in_process(
        "train", "sft-synthetic", f"data.train={spec}", *SMALL, "data.max_len=1300", "out=run", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "; credit 0" in result.stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["metrics"]["accuracy"]["credit"]["n"] == 3
    words = ["--model", "run", "--data", spec, "--rows", "3", "--length", "8", "--steps", "4", "--block", "8"]
    result = in_process("eval", *words, "--out", "eval", "--beside", "none", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads((tmp_path / "eval" / "eval.json").read_text())["metrics"]["accuracy"]
    assert {"value", "flexible", "credit"} <= set(metrics)
    assert "credit" in metrics["flexible"]


@pytest.mark.slow
def test_decompose(tmp_path):
    small = ["rows=4", "rates=2", "masks=2", "steps=4", "forwards=4", "probe.rows=4", "probe.rates=4", "probe.masks=2"]
    words = ["decompose", "model=tiny", "data.train=reasoning-gym:chain_sum", "methods=[standard]"]
    result = in_process(*words, *small, "probe.starts=3", "data.train_rows=8", "out=d", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
