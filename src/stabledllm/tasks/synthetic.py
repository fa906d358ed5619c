"""Arithmetic written out step by step: a reasoning task that needs no network.

    7+5-3=?    ->    7+5=12
                     12-3=9
                     #### 9

A problem is a function of (seed, split, index). Its split is a hash of its text, so train,
validation and test are disjoint whatever their seeds and difficulties.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any, Literal

from stabledllm.errors import UserError, did_you_mean
from stabledllm.tasks import scoring
from stabledllm.tasks.task import Scored, TaskOptions
from stabledllm.tasks.task import example as as_example

Split = Literal["train", "validation", "test"]
_SPLIT_OF_BUCKET = ("test", "validation") + ("train",) * 8
ROWS = {"train": 4000, "validation": 256, "test": 128}
"""The default number of rows of each split."""
LARGEST = 99
"""Every intermediate value lies in [0, LARGEST]."""


@dataclass(frozen=True)
class Difficulty:
    """The difficulty of problems: the range of the number of steps (drawn uniformly) and the largest operand."""

    min_steps: int
    max_steps: int
    max_operand: int = 9

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps <= 40:
            raise UserError(
                f"synthetic: expected 1 <= min_steps <= max_steps <= 40, found {self.min_steps} and {self.max_steps}."
            )
        # Up to this limit every operand can be added to or subtracted from every value.
        if not 1 <= self.max_operand <= (LARGEST + 1) // 2:
            most = (LARGEST + 1) // 2
            raise UserError(f"synthetic: expected max_operand in [1, {most}], found {self.max_operand}.")


LEVELS = {"easy": Difficulty(1, 3), "hard": Difficulty(1, 3, 19)}


def difficulty(name: str) -> Difficulty:
    """The difficulty of a named level, or of ``MIN-MAX`` or ``MIN-MAX/OPERAND`` such as ``5-8/20``."""
    if name in LEVELS:
        return LEVELS[name]
    try:
        steps, _, operand = name.partition("/")
        low, _, high = steps.partition("-")
        return Difficulty(int(low), int(high or low), int(operand or 9))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"synthetic: unknown difficulty '{name}'{did_you_mean(name, LEVELS)}; also MIN-MAX/OPERAND such as 5-8/20."
        ) from None


def _problem(rng: random.Random, level: Difficulty) -> tuple[str, str]:
    value = rng.randint(1, max(level.max_operand, 20))
    question, lines = str(value), []
    for _ in range(rng.randint(level.min_steps, level.max_steps)):
        operand = rng.randint(1, level.max_operand)
        signs = [s for s in (1, -1) if 0 <= value + s * operand <= LARGEST]
        sign = rng.choice(signs)
        text = f"{'+' if sign > 0 else '-'}{operand}"
        lines.append(f"{value}{text}={value + sign * operand}")
        question, value = question + text, value + sign * operand
    return f"{question}=?", "\n".join([*lines, f"#### {value}"])


def split_of(prompt: str) -> Split:
    """The split that a problem belongs to, by its text alone."""
    return _SPLIT_OF_BUCKET[hashlib.sha256(prompt.encode()).digest()[0] % 10]


def example(split: Split, seed: int, index: int, level: Difficulty) -> dict:
    """The example of number ``index`` in a split: ``{"prompt", "response"}``."""
    rng = random.Random(f"{seed}/{split}/{index}")
    while True:
        prompt, response = _problem(rng, level)
        if split_of(prompt) == split:
            return {"prompt": prompt, "response": response}


def examples(split: Split, n: int, seed: int = 0, level: Difficulty = LEVELS["hard"]) -> list[dict]:
    """The first n examples of a split; problems may repeat only where there are few of them."""
    return [example(split, seed, i, level) for i in range(n)]


class Synthetic:
    """The synthetic task; it is scored as GSM8K is, by the number after ``####``."""

    name = "synthetic"
    splits = ("train", "validation", "test")
    splits_files = True
    beside = ()
    delimiters = ("####",)

    def check(self, where: str | None) -> None:
        """Refuse a level that does not exist."""
        difficulty(where or "hard")

    def load(self, where: str | None, split: str, options: TaskOptions) -> list[dict]:
        """Make ``options.rows`` examples of level ``where``; example i is the same however many are made."""
        spec, level = f"synthetic:{where}" if where else "synthetic", difficulty(where or "hard")
        rows = examples(split, options.rows or ROWS[split], options.seed, level)
        return [
            as_example(r["prompt"], r["response"], f"{spec} {split} row {i}", r["response"]) for i, r in enumerate(rows)
        ]

    def score(self, completion: str, gold: Any, *, flexible: bool = False) -> Scored:
        """Score a completion; ``gold`` is the worked answer, or the number itself."""
        return scoring.score_number(completion, gold, flexible=flexible)


TASK = Synthetic()
