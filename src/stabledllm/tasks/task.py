"""The interface of a task, which loads examples and scores completions against gold answers.

A task knows its data set's own format and answers, and nothing of tokens, models or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class TaskOptions:
    """The options of tasks, from the settings under ``data``; each has an effect in the tasks that it names."""

    annotations: Literal["keep", "remove"] = "keep"
    """GSM8K's calculator annotations ``<<48/2=24>>`` in the responses."""
    table: Literal["markdown", "html"] = "markdown"
    """How HiTab's tables are written into the prompt."""
    rows: int | None = None
    """Number of rows of the split: the tasks that make rows make so many, OpenScience may stop reading there."""
    seed: int = 0
    """Seed of the tasks that make their rows."""
    note: Callable[[str], None] = lambda _: None
    """Gets a sentence on rows that were dropped."""


@dataclass(frozen=True)
class Scored:
    """The answer read from a completion and whether it is right. A missing answer is not the same as a wrong one."""

    parsed: str | list[str] | None
    """The answer in normal form; None if there is none."""
    correct: bool | None
    """None exactly where ``parsed`` is None."""
    credit: float | None = None
    """The share of a right answer that it is worth, in [0, 1]; None for tasks that give no partial credit."""


def verdicts(strict: Scored, flexible: Scored) -> dict:
    """The two scores of a completion under the keys that they have in a file; credits where there are some."""
    credits = {"credit": strict.credit, "flexible_credit": flexible.credit}
    return {
        "parsed": strict.parsed,
        "correct": strict.correct,
        "flexible_parsed": flexible.parsed,
        "flexible_correct": flexible.correct,
    } | {key: credit for key, credit in credits.items() if credit is not None}


class Task(Protocol):
    """A task: one data set and its scoring. Each module of a task holds one as ``TASK``."""

    name: str
    """The name in a specification: ``name`` (the hub) or ``name:PATH``."""
    splits: tuple[str, ...]
    """Those of ``train``, ``validation``, ``test`` that the hub's data set or a folder has by itself."""
    splits_files: bool
    """Whether a single file holds every split too (by a hash of each row's text); else it is one split."""
    beside: tuple[str, ...]
    """Folders beside a single file that are read as well."""
    delimiters: tuple[str, ...]
    """Strings before an answer, which ISAD masks more often: the default of ``data.delimiters``."""

    def load(self, where: str | None, split: str, options: TaskOptions) -> Sequence[dict]:
        """Load the examples in the data set's order, as :func:`example` makes them.

        Args:
            where: a local file or folder in the data set's own format; None: the hub.
            split: one of ``splits``; a single file without splits is read whole, whatever the split.

        Raises:
            UserError: anything wrong with the file, with its line and key; no hub; a split that does not exist.
        """
        ...

    def score(self, completion: str, gold: Any, *, flexible: bool = False) -> Scored:
        """Score one completion; no completion can make it raise an error.

        Args:
            gold: the data set's own answer field, from :meth:`load` or from a user's file.
            flexible: also read the answer from places other than the one that the task asks for.

        Raises:
            UserError: a gold without an answer ("expected ..., found ..."), whatever the completion.
        """
        ...


class MadeTask(Task, Protocol):
    """A task whose rows are made: ``where`` says how, and is no path."""

    def check(self, where: str | None) -> None:
        """Refuse, before anything is loaded, what no rows can be made from.

        Raises:
            UserError: says what was expected.
        """
        ...


def example(prompt: str, response: str, origin: str, gold: Any = None) -> dict:
    """Make an example ``{"messages", "origin", "gold"}``: both turns, ``file:line``, and the answer field.

    Without ``gold`` the key is left out: the row can be trained on, but not scored.
    """
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    row = {"messages": messages, "origin": origin}
    return row if gold is None else row | {"gold": gold}
