"""GSM8K (Cobbe et al., arXiv:2110.14168), from the hub or local files in the data set's own format.

One JSON object a line: ``{"question": ..., "answer": "... <<48/2=24>>24 ...\\n#### 72"}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stabledllm.tasks import scoring
from stabledllm.tasks.files import read_jsonl, split_file, text_field
from stabledllm.tasks.hub import hub_rows
from stabledllm.tasks.task import Scored, TaskOptions, example

_ANNOTATION = re.compile(r"<<[^<>]*>>")


class GSM8K:
    """Final answers after ``####``, compared by value; flexible: the last number of the completion."""

    name = "gsm8k"
    splits = ("train", "test")
    splits_files = False
    delimiters = ("####",)

    def load(self, where: str | None, split: str, options: TaskOptions) -> list[dict]:
        """Every row; ``gold`` is the ``answer`` as it stands in the file, whatever ``annotations`` says."""
        rows = []
        for origin, record in self._records(where, split):
            question, answer = text_field(record, "question", origin), text_field(record, "answer", origin)
            response = _ANNOTATION.sub("", answer) if options.annotations == "remove" else answer
            rows.append(example(question, response, origin, answer))
        return rows

    def _records(self, where: str | None, split: str) -> Iterator[tuple[str, dict]]:
        if where is None:
            return hub_rows(self.name, "openai/gsm8k", split, config="main")
        path = Path(where).expanduser()
        return read_jsonl(split_file(path, split) if path.is_dir() else path)

    def score(self, completion: str, gold: Any, *, flexible: bool = False) -> Scored:
        """``gold``: an ``answer`` that ends in ``#### NUMBER``, or the number itself."""
        return scoring.score_number(completion, gold, flexible=flexible)


TASK = GSM8K()


def load(path: Path) -> list[dict]:
    """``{"prompt", "response", "origin"}`` per line of a file, the answer as it stands there."""
    rows = TASK.load(str(path), "train", TaskOptions())
    return [{"prompt": r["messages"][0]["content"], "response": r["gold"], "origin": r["origin"]} for r in rows]
