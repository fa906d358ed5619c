"""HiTab (Cheng et al., arXiv:2108.06712): questions over hierarchical tables, from the official folder.

``hitab:FOLDER`` holds ``{train,dev,test}_samples.jsonl`` and the unzipped tables, ``tables/raw/ID.json``. The data set
has answers but no reasoning: a response is ``Answer: VALUE | VALUE``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from stabledllm.errors import UserError
from stabledllm.tasks.examples import Examples, Stored
from stabledllm.tasks.files import split_file, text_field
from stabledllm.tasks.hitab_scoring import gold_values, score_answer, written
from stabledllm.tasks.hitab_table import HierarchicalTable, read_table
from stabledllm.tasks.task import Scored, TaskOptions, example

_FILES = {"train": "train_samples", "validation": "dev_samples", "test": "test_samples"}
_TABLES = ("tables/raw", "tables/tables/raw", "raw", "tables")
"""Folders that hold the tables once the archive is unzipped, in the task's folder or beside its file."""
_ASK = 'Give the answer on the last line as "Answer: VALUE"; separate several values by vertical bars.'


class HiTab:
    """The task HiTab: answers after ``Answer:``, by the official rule; flexible: also without it, and with units."""

    name = "hitab"
    splits = ("train", "validation", "test")
    splits_files = False
    beside = _TABLES
    delimiters = ("Answer:",)

    def load(self, where: str | None, split: str, options: TaskOptions) -> Examples:
        """Load every row, with its table as ``options.table`` says; ``gold`` is the ``answer`` of the file, a list."""
        if where is None:
            raise UserError(
                "data 'hitab': expected hitab:FOLDER, the 'data' folder of the HiTab repository with its tables.zip "
                "unzipped, found no path; the hub has no copy in the official format."
            )
        path = Path(where).expanduser()
        file = split_file(path, _FILES[split]) if path.is_dir() else path
        folder = _tables(path if path.is_dir() else path.parent, file)
        read = lru_cache(maxsize=256)(lambda name, origin: read_table(folder / f"{name}.json", origin))
        return Stored(file, lambda record, origin: [self._example(record, origin, read, options)])

    @staticmethod
    def _example(record: dict, origin: str, read, options: TaskOptions) -> dict:
        question, table = text_field(record, "question", origin), text_field(record, "table_id", origin)
        answer = record.get("answer")
        try:
            gold_values(answer)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
        prompt = prompt_of(read(table, origin), question, options.table)
        return example(prompt, f"Answer: {written(answer)}", origin, answer) | {"table": table}

    def score(self, completion: str, gold: Any, *, flexible: bool = False) -> Scored:
        """Score a completion; ``gold`` is the file's ``answer``, a list of numbers or texts."""
        return score_answer(completion, gold, flexible=flexible)


def prompt_of(table: HierarchicalTable, question: str, form: str) -> str:
    """The prompt: title, table and question, and how to answer."""
    title = [table.title] if table.title else []
    text = table.html() if form == "html" else table.markdown()
    return "\n\n".join([*title, text, f"Question: {question}", _ASK])


def _tables(folder: Path, file: Path) -> Path:
    for name in _TABLES:
        if (folder / name).is_dir() and _has_json(folder / name):
            return folder / name
    raise UserError(
        f"{file}: expected the official tables in {folder / _TABLES[0]} (tables.zip of the HiTab repository, "
        f"unzipped), found none."
    )


def _has_json(folder: Path) -> bool:
    return next(folder.glob("*.json"), None) is not None


TASK = HiTab()
