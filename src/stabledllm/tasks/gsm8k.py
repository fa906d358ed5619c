"""GSM8K (Cobbe et al., arXiv:2110.14168), from the hub or local files in the data set's own format.

One JSON object per line: ``{"question": ..., "answer": "... <<48/2=24>>24 ...\\n#### 72"}``.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from stabledllm.tasks import scoring
from stabledllm.tasks.examples import Examples, Stored, made
from stabledllm.tasks.files import split_file, text_field
from stabledllm.tasks.hub import hub_rows
from stabledllm.tasks.task import Scored, TaskOptions, example

_ANNOTATION = re.compile(r"<<[^<>]*>>")


class GSM8K:
    """The task GSM8K: final answers after ``####``, compared by value; flexible: the completion's last number."""

    name = "gsm8k"
    splits = ("train", "test")
    splits_files = False
    beside = ()
    delimiters = ("####",)

    def load(self, where: str | None, split: str, options: TaskOptions) -> Examples:
        """Load every row; ``gold`` is the ``answer`` exactly as in the file, whatever ``annotations`` says."""
        make = partial(_examples, options.annotations == "remove")
        if where is None:
            return made(hub_rows(self.name, "openai/gsm8k", split, config="main"), make)
        path = Path(where).expanduser()
        return Stored(split_file(path, split) if path.is_dir() else path, make)

    def score(self, completion: str, gold: Any, *, flexible: bool = False) -> Scored:
        """Score a completion; ``gold`` is an ``answer`` that ends in ``#### NUMBER``, or the number itself."""
        return scoring.score_number(completion, gold, flexible=flexible)


def _examples(without_annotations: bool, record: dict, origin: str) -> list[dict]:
    question, answer = text_field(record, "question", origin), text_field(record, "answer", origin)
    response = _ANNOTATION.sub("", answer) if without_annotations else answer
    return [example(question, response, origin, answer)]


TASK = GSM8K()
