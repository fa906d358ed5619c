"""The registry of tasks by name."""

from __future__ import annotations

from typing import Any

from stabledllm.errors import UserError, did_you_mean
from stabledllm.tasks import gsm8k, hitab, openscience, synthetic
from stabledllm.tasks.gym import task as gym
from stabledllm.tasks.task import MadeTask, Task

MADE: dict[str, MadeTask] = {task.name: task for task in (synthetic.TASK, gym.TASK)}
"""Those whose rows are made from what follows the colon, and read from no file."""
TASKS: dict[str, Task] = MADE | {task.name: task for task in (gsm8k.TASK, hitab.TASK, openscience.TASK)}


_MEANT = {
    "gym": "reasoning-gym",
    "reasoning": "reasoning-gym",
    "math": "gsm8k",
    "gsm": "gsm8k",
    "science": "openscience",
}
"""Tasks by the names that are far from theirs, or begin with theirs and go on with a data set's."""


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        meant = _MEANT.get(name.partition(":")[0].lower().replace("_", "-"))
        hint = f" (did you mean '{meant}'?)" if meant else did_you_mean(name, TASKS)
        raise UserError(f"task '{name}': expected a known task, found none{hint}.")
    return TASKS[name]


def task_of(spec: str) -> Task | None:
    """The task of a data specification (``gsm8k:PATH``); None for ``jsonl:PATH``, whose rows name their tasks."""
    return TASKS.get(spec.partition(":")[0])


def task_and_gold(example: dict) -> tuple[Task, Any] | None:
    """The task that scores an example, and the gold answer; None if the example holds no answer.

    An example without a task (``jsonl``) is scored as GSM8K if its response holds ``#### NUMBER``.
    """
    if "messages" not in example or ("task" in example and "gold" not in example):
        return None
    task = TASKS[example["task"]] if "task" in example else gsm8k.TASK
    gold = example["gold"] if "gold" in example else example["messages"][-1]["content"]
    try:
        task.score("", gold)
    except UserError:
        return None
    return task, gold
