"""Scoring completions again from a file, without the model that wrote them: ``stabledllm rescore``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.runtime.files import writing
from stabledllm.tasks.files import read_jsonl
from stabledllm.tasks.registry import task_named
from stabledllm.tasks.scoring import wilson_interval
from stabledllm.tasks.task import Task, verdicts


def rescore(task: str, source: Path, out: Path) -> str:
    """Write each row of ``source`` to ``out`` with its scores, strict and flexible; returns a summary line.

    Rows are handled one at a time: memory does not grow with the file.

    A row has ``completion`` and ``gold``, the data set's own answer field; its other keys are kept. ``out`` is written
    whole or not at all.

    Raises:
        UserError: an unknown task, a bad row (naming file and line), or ``out`` being ``source``.
    """
    scorer = task_named(task)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"rescore: expected --out to be another file than {source}, found the same one.")
    if out.is_dir():
        raise UserError(f"{out}: expected a file to write, found a folder.")
    counters = {"correct": Counter(), "flexible_correct": Counter()}
    all_credits: dict[str, list[float]] = {"credit": [], "flexible_credit": []}
    with writing(out) as file:
        for origin, row in read_jsonl(source, halves=True):
            scored = row | _scored(scorer, row, origin)
            file.write(_line(scored).encode())
            for key, counts in counters.items():
                counts[scored[key]] += 1
            for key, credits in all_credits.items():
                credits += [scored[key]] if key in scored else []
    return f"{task}: {counters['correct'].total()} rows; " + "; ".join(
        f"{name} {_summary(counters[f'{begin}correct'], all_credits[f'{begin}credit'])}"
        for name, begin in (("strict", ""), ("flexible", "flexible_"))
    )


def _scored(scorer: Task, row: dict, origin: str) -> dict:
    completion, gold = _field(row, "completion", origin), _field(row, "gold", origin)
    if not isinstance(completion, str):
        raise UserError(f"{origin}: expected text under 'completion', found {type(completion).__name__}.")
    try:
        return verdicts(*(scorer.score(completion, gold, flexible=flexible) for flexible in (False, True)))
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None


def _field(row: dict, key: str, origin: str) -> object:
    if row.get(key) is None:
        raise UserError(f"{origin}: expected 'completion' and 'gold', found no '{key}'.")
    return row[key]


def _line(row: dict) -> str:
    text = json.dumps(row, ensure_ascii=False)
    # Half of a surrogate pair, which UTF-8 cannot hold, is written as a JSON escape again.
    return (text if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text) else json.dumps(row)) + "\n"


def _summary(counts: Counter, credits: list[float]) -> str:
    correct, wrong, none = counts[True], counts[False], counts[None]
    low, high = wilson_interval(correct, counts.total())
    mean_credit = f"; mean credit {sum(credits) / counts.total():.4f}" if credits else ""
    return (
        f"{correct / counts.total():.4f} correct (95 % {low:.4f} to {high:.4f}; {correct} correct, {wrong} wrong, "
        f"{none} without an answer{mean_credit})"
    )
