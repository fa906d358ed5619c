"""What needs no package: naming the task, its refusal, and scoring by a number."""

from __future__ import annotations

import sys

import pytest

from stabledllm.errors import UserError
from stabledllm.tasks.registry import TASKS, task_named
from stabledllm.tasks.task import TaskOptions
from tests.cli.runner import assert_refused, in_process

TASK = TASKS["reasoning-gym"]


def gsm(answer: str) -> dict:
    """An item of gsm_symbolic as the package makes it."""
    return {"question": "?", "answer": answer, "metadata": {"source_dataset": "gsm_symbolic"}}


@pytest.fixture
def without(monkeypatch):
    """An environment without the package."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)


def test_without_the_package_one_sentence_says_what_to_install(without, tmp_path):
    with pytest.raises(UserError, match=r"'reasoning-gym:chain_sum'.*pip install 'stabledllm\[reasoning-gym\]'\.$"):
        TASK.load("chain_sum", "train", TaskOptions())
    for words in (["validate", "sft-synthetic"], ["train", "sft-synthetic", "out=run"]):
        result = in_process(*words, "data.train=reasoning-gym:gsm_symbolic", cwd=tmp_path)
        assert_refused(result, "expected the package 'reasoning-gym'", "pip install 'stabledllm[reasoning-gym]'")
    assert not (tmp_path / "run").exists()


def test_its_name_is_known_without_the_package(without):
    assert task_named("reasoning-gym") is TASK
    with pytest.raises(UserError, match="did you mean 'reasoning-gym'"):
        task_named("reasoning_gym")


@pytest.mark.parametrize(
    ("completion", "gold", "strict", "flexible"),
    [
        ("so 3 - 5 = -2\n#### -2", "-2", True, True),
        ("so 3 - 5 = -2\n#### 2", "-2", False, False),
        ("12 * 100\n#### 1,200", "1200", True, True),
        ("#### 1", "1200", False, False),
        ("1,200", "1200", True, True),
        ("-2", "-2", True, True),
        ("first 7, then it is 1,200.", "1200", None, True),
        ("2812.5", "2812.5", True, True),
        ("no number", "5", None, None),
        ("", "5", None, None),
    ],
)
@pytest.mark.parametrize("form", [str, gsm], ids=["number", "item"])
def test_gsm_symbolic_is_scored_as_gsm8k(without, completion, gold, strict, flexible, form):
    scores = [TASK.score(completion, form(gold), flexible=each) for each in (False, True)]
    assert [score.correct for score in scores] == [strict, flexible]
    assert [score.credit for score in scores] == [None, None]


@pytest.mark.parametrize("gold", [{}, {"answer": "5"}, {"answer": "5", "metadata": {}}, ["5"], "none", None])
def test_a_gold_that_is_no_item_is_refused(gold):
    with pytest.raises(UserError, match="expected a gold"):
        TASK.score("5", gold)
