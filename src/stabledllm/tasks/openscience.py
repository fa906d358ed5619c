r"""OpenScienceReasoning-2 (nvidia), from the hub or local files in the data set's own format.

A row is ``{"input": question, "output": reasoning that ends in \boxed{ANSWER}}``, and in some files also
``expected_answer``. Questions are multiple choice (the answer is a letter) or free (a number, a formula, a few words).

The data set has no splits: a hash of its question puts one row in six into the test split, as in the paper (5,000 rows
and 1,000 others). A folder with ``train.jsonl`` and ``test.jsonl`` is read as it is.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path
from typing import Any

from stabledllm.errors import UserError
from stabledllm.tasks import latex
from stabledllm.tasks.boxed import last_boxed
from stabledllm.tasks.examples import Examples, Stored, made
from stabledllm.tasks.files import split_file, text_field
from stabledllm.tasks.hub import hub_rows, parquet_rows
from stabledllm.tasks.likeness import plain
from stabledllm.tasks.task import Scored, TaskOptions, example
from stabledllm.tasks.text_files import has_ending

TEST_SHARE = 6
"""One question in so many is in the test split."""
_LONGEST = 500
"""Number of characters of an answer in which the letter of a choice is looked for."""
_GOLD = ("expected_answer", "answer")
_LETTER = re.compile(
    r"\s*(?:the\s+)?(?:(?:final|correct)\s+)?(?:answer|option|choice)?\s*(?:is)?\s*[:=]?\s*"
    r"[(\[{]?\s*([A-Za-z])\s*(?:[)\]}.:]+(?:\s*\S.*)?|\s+(?:\(|[-–—]\s).*)?\s*",
    re.IGNORECASE | re.DOTALL,
)
# In running text "A" and "I" are also words.
_LETTER_IN_TEXT = re.compile(r"\(?\s*([B-HJ-Z]|[AI](?!\s+[a-z]))\s*\)?(?![\w'’]).*", re.DOTALL)
_ANSWER_IS = re.compile(r"\b(?:answer|option|choice)\b\W{0,6}(?:is\b|:|=)[\s:*_`]*([^\n]+)", re.IGNORECASE)
_ALONE = re.compile(r"[\s*_`]*(\(?[A-Z]\)?[.:)]?|[-+\u2212]?[\d.,/]*\d)[\s*_`.]*")


class OpenScience:
    r"""The task OpenScience: the answer is the last ``\boxed{...}``, in a normal form of LaTeX; choices by letter.

    Flexible: without a box, the answer is the text after the last "answer is" or "answer:", or a last line that is only
    a letter or a number.
    """

    name = "openscience"
    splits = ("train", "test")
    splits_files = True
    beside = ()
    delimiters = ("\\boxed{",)

    def load(self, where: str | None, split: str, options: TaskOptions) -> Examples:
        """Load the first ``options.rows`` rows of the split, or all; rows without an answer have no ``gold``."""
        if where is None:
            rows = hub_rows(self.name, "nvidia/OpenScienceReasoning-2", "train")
            return made(rows, partial(_examples, split), options.rows)
        path = Path(where).expanduser()
        make = partial(_examples, None if path.is_dir() else split)
        if path.is_dir():
            path = split_file(path, split)
        if has_ending(path, ".parquet"):
            return made(parquet_rows(self.name, path), make, options.rows)
        return Stored(path, make, options.rows)

    def score(self, completion: str, gold: Any, *, flexible: bool = False) -> Scored:
        r"""Score a completion; ``gold`` is ``expected_answer``, or a text that holds it in ``\boxed{}``."""
        expected = parse_gold(gold)
        given, pattern = last_boxed(completion), _LETTER
        if given is None and flexible:
            given, pattern = _loose(completion), _LETTER_IN_TEXT
        choice = len(expected) == 1 and expected.isupper()
        letter = pattern.fullmatch(bare) if choice and (bare := _unwrapped(given)) else None
        parsed = letter[1].upper() if letter else latex.normal(given or "")
        return Scored(parsed or None, latex.equal(parsed, expected) if parsed else None)


def _examples(split: str | None, record: dict, origin: str) -> list[dict]:
    """The row as an example, or none if it is not in ``split``; a ``split`` of None takes every row."""
    question, output = text_field(record, "input", origin), text_field(record, "output", origin)
    if split is not None and split_of(question) != split:
        return []
    return [example(question, output, origin, _gold(record, output))]


def split_of(question: str) -> str:
    """The split of a question, by its words and numbers alone: all spellings of a question are in one split."""
    digest = hashlib.sha256(plain(question).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % TEST_SHARE == 0 else "train"


def parse_gold(gold: Any) -> str:
    """The answer of a gold field in normal form; a multiple choice is its letter.

    Raises:
        UserError: the field holds no answer.
    """
    text = str(gold) if isinstance(gold, int | float) and not isinstance(gold, bool) else gold
    if isinstance(text, str):
        boxed = last_boxed(text)
        answer = text if boxed is None else boxed
        letter = re.fullmatch(r"\s*\(?([A-Z])(?:\)|[.:)]+(?:\s.*)?)?\s*", _unwrapped(answer), re.DOTALL)
        # A long text without a box is a worked solution, not an answer.
        parsed = letter[1] if letter else latex.normal(answer) if boxed is not None or len(answer) <= _LONGEST else ""
        if parsed:
            return parsed
    found = repr(gold) if len(repr(gold)) <= 60 else f"'...{repr(gold)[-57:]}"
    raise UserError(f"expected a gold answer, or a text with one in '\\boxed{{}}', found {found}.")


def _gold(record: dict, output: str) -> Any:
    for key in _GOLD:
        if record.get(key) not in (None, ""):
            return record[key]
    return output if last_boxed(output) is not None else None


def _unwrapped(answer: str | None) -> str:
    r"""The answer without fonts, math marks and braces: ``\textbf{(B)}`` becomes ``(B)``."""
    text = re.sub(r"\\[a-zA-Z]+\s*\{|\\[()\[\],;! ]|[{}$*_`]", " ", answer or "")
    return text[:_LONGEST].strip()


def _loose(completion: str) -> str | None:
    answers = _ANSWER_IS.findall(completion)
    if answers:
        return answers[-1].strip().rstrip(".*_`")
    lines = completion.strip().splitlines()
    alone = _ALONE.fullmatch(lines[-1]) if lines else None
    return alone and alone[1]


TASK = OpenScience()
