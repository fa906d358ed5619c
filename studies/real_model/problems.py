"""The study's rows: worked solutions of gsm_symbolic, drawn once and written as GSM8K's files are.

Rows of training come from templates that the held-out rows know nothing of: the task's own splits. The rows take turns
over the templates, so that none counts more than another.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.models.hf_tokenizer import HFTokenizer
from stabledllm.runtime.files import write_json, write_jsonl
from stabledllm.tasks.registry import task_named
from stabledllm.tasks.task import TaskOptions

SYSTEM = "Solve."
"""A short system prompt: without it the model's chat template puts a long one of its own before every row."""
DRAWN = 5
"""Rows drawn for each that is wanted: fewer than half are short enough."""
_TEMPLATE = re.compile(r"\((.* template \d+)\)$")


@dataclass(frozen=True)
class File:
    """A file of rows: its split and its seed; files of one split have templates in common, and by chance a row."""

    split: str
    seed: int


FILES = {
    "adapt": File("train", 1),
    "tune": File("train", 2),
    "measure": File("train", 3),
    "held_out": File("test", 1),
    "problems": File("test", 2),
}


def write_problems(folder: Path, source: str, sizes: dict[str, int], tokenizer: HFTokenizer, longest: int) -> None:
    """Write ``FILE.jsonl`` for every file, and ``text.json``, which says what was drawn and dropped.

    Raises:
        UserError: too few rows are short enough.
    """
    told = {}
    for name, file in FILES.items():
        drawn = rows_of(source, file, DRAWN * sizes[name])
        short = [row for row in drawn if tokens_of(row, tokenizer) <= longest]
        kept = list(islice(by_turns(short), sizes[name]))
        if len(kept) < sizes[name]:
            raise UserError(f"{source}: expected {sizes[name]} rows of at most {longest} tokens, found {len(kept)}.")
        write_jsonl(folder / f"{name}.jsonl", (_written(row) for row in kept))
        told[name] = {
            "split": file.split,
            "seed": file.seed,
            "rows": len(kept),
            "templates": len({template_of(row) for row in kept}),
            "drawn": len(drawn),
            "longer": len(drawn) - len(short),
            "mean_tokens": round(sum(tokens_of(row, tokenizer) for row in kept) / len(kept), 1),
        }
    write_json(folder / "text.json", {"source": source, "longest": longest, "files": told})


def write_halves(folder: Path, tokenizer: HFTokenizer) -> None:
    """Write the rows of ``measure.jsonl`` with the shorter responses to one file, those with the longer to another."""
    rows = _read(folder / "measure.jsonl")
    rows.sort(key=lambda row: len(tokenizer.encode(row["answer"])))
    half = len(rows) // 2
    write_jsonl(folder / "measure_short.jsonl", rows[:half])
    write_jsonl(folder / "measure_long.jsonl", rows[half:])


def write_familiar_rows(folder: Path, count: int) -> None:
    """Write the last ``count`` rows of ``measure.jsonl`` that no training file has to ``familiar.jsonl``.

    They are of the training rows' templates. The first rows of the file are those that a learning rate was chosen by.

    Raises:
        UserError: there are not so many.
    """
    rows = {name: _read(folder / f"{name}.jsonl") for name in ("measure", "adapt", "tune")}
    seen = {row["question"] for name in ("adapt", "tune") for row in rows[name]}
    new = [row for row in rows["measure"] if row["question"] not in seen]
    if len(new) < count:
        raise UserError(
            f"{folder / 'measure.jsonl'}: expected {count} rows that are no training rows, found {len(new)}"
        )
    write_jsonl(folder / "familiar.jsonl", new[-count:])


def templates_of(folder: Path, source: str, name: str) -> list[str]:
    """The template of each row of ``NAME.jsonl``, whose rows do not say it: those of the task are drawn again.

    Raises:
        UserError: the task does not draw these rows, as another version of its package.
    """
    rows = _read(folder / f"{name}.jsonl")
    drawn = rows_of(source, FILES[name], DRAWN * len(rows))
    templates = {_written(row)["question"]: template_of(row) for row in drawn}
    missing = next((place for place, row in enumerate(rows, 1) if row["question"] not in templates), None)
    if missing:
        raise UserError(
            f"{folder / name}.jsonl: line {missing}: expected a row that {source} draws, found another; install the "
            f"version of the package that it was drawn with."
        )
    return [templates[row["question"]] for row in rows]


def rows_of(source: str, file: File, count: int) -> list[dict]:
    """Rows of a task's split."""
    name, _, where = source.partition(":")
    return task_named(name).load(where or None, file.split, TaskOptions(rows=count, seed=file.seed))


def by_turns(rows: Iterable[dict]) -> Iterator[dict]:
    """The first row of every template, then the second of every one, and so on.

    >>> [row["origin"] for row in by_turns([{"origin": f"({kind} template {n})"} for n in (1, 2) for kind in "aab"])]
    ['(a template 1)', '(b template 1)', '(a template 2)', '(b template 2)', '(a template 1)', '(a template 2)']
    """
    groups = defaultdict(list)
    for row in rows:
        groups[template_of(row)].append(row)
    left = list(groups.values())
    while left:
        for group in left:
            yield group.pop(0)
        left = [group for group in left if group]


def template_of(row: dict) -> str:
    """The name of a row's template; the row's own where its task has none."""
    found = _TEMPLATE.search(row["origin"])
    return found[1] if found else row["origin"]


def tokens_of(row: dict, tokenizer: HFTokenizer) -> int:
    """The length of the whole row, with its end token."""
    messages = [{"role": "system", "content": SYSTEM}, *row["messages"]]
    return len(tokenizer.chat(messages[:-1])) + len(tokenizer.encode(row["messages"][-1]["content"])) + 1


def _read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _written(row: dict) -> dict:
    question, answer = (message["content"] for message in row["messages"])
    return {"question": question, "answer": answer}
