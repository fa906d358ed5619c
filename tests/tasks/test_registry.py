"""What every task must do, whichever it is."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.errors import UserError
from stabledllm.tasks.registry import TASKS, task_and_gold, task_named, task_of
from stabledllm.tasks.task import TaskOptions
from tests.checks.data import example

SYMBOLIC = {"answer": "72", "metadata": {"source_dataset": "gsm_symbolic"}}
GOLDS = {
    "reasoning-gym": [SYMBOLIC, 72, "7.5"],
    "hitab": [[7.0], ["a", "b"]],
    "openscience": ["B", "1/2", "kinetic energy"],
}
COMPLETIONS = st.one_of(
    st.text(),
    st.text(alphabet="#0123456789.,-+$€%/ \n\u0663\u00b2\u2212eE\\{}()[]|<>"),
    st.sampled_from(["#### ", "\\boxed{", "Answer: ", "the answer is "]).flatmap(lambda s: st.text().map(s.__add__)),
    st.sampled_from(
        ["1e999999999", "#### 1e999999999", "\\boxed{10^{99999999}}", "\ud800", "#### " + "9" * 9999, "\x00"]
    ),
)


@given(COMPLETIONS, st.booleans())
def test_no_completion_raises_and_none_is_apart_from_wrong(completion, flexible):
    for name, task in TASKS.items():
        for gold in GOLDS.get(name, ["#### 72", 72, "7.5"]):
            found = task.score(completion, gold, flexible=flexible)
            assert found.correct in (True, False, None)
            assert (found.parsed is None) == (found.correct is None), (name, completion)
            json.dumps(found.parsed)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_interface(name):
    task = TASKS[name]
    assert task.name == name
    assert set(task.splits) <= {"train", "validation", "test"}
    assert task.delimiters
    assert all(task.delimiters)
    assert task_of(name) is task_of(f"{name}:somewhere") is task_named(name) is task


def test_of_no_task():
    assert task_of("jsonl:gsm8k") is None
    with pytest.raises(UserError, match=r"task 'gsm9k': .*did you mean 'gsm8k'"):
        task_named("gsm9k")


def test_rows_of_no_task_are_scored_as_gsm8k_where_they_give_a_number():
    assert task_and_gold(example("q", "so\n#### 7")) == (TASKS["gsm8k"], "so\n#### 7")
    assert task_and_gold(example("q", "no number")) is None
    assert task_and_gold({"input_ids": [1], "prompt_length": 0, "origin": "f:1"}) is None
    assert task_and_gold(example("q", "#### 7") | {"task": "openscience"}) is None, "a row of a task without an answer"


def test_a_synthetic_row_scores_its_own_answer():
    for split in ("train", "validation", "test"):
        for row in TASKS["synthetic"].load("easy", split, TaskOptions(rows=5)):
            assert TASKS["synthetic"].score(row["messages"][-1]["content"], row["gold"]).correct is True


@pytest.mark.processes
def test_no_torch():
    code = (
        "import sys, stabledllm.tasks.rescore; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
