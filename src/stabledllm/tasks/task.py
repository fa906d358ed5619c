"""What a task is: where its examples come from, and how a completion is scored against a gold answer.

A task knows its data set's own format and its own answers, and nothing of tokens, models or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class TaskOptions:
    """What the settings under ``data`` pass on; each acts in the tasks that it names."""

    annotations: Literal["keep", "remove"] = "keep"
    """GSM8K's calculator annotations ``<<48/2=24>>`` in the responses."""
    table: Literal["markdown", "html"] = "markdown"
    """How HiTab's tables are written into the prompt."""
    rows: int | None = None
    """Rows that are wanted of the split: what the synthetic task makes, where OpenScience may stop reading."""
    seed: int = 0
    """Of the synthetic task."""


@dataclass(frozen=True)
class Scored:
    """What was read from a completion and whether it is right. No answer found is apart from wrong."""

    parsed: str | list[str] | None
    """The answer in normal form; None: none was found."""
    correct: bool | None
    """None exactly where ``parsed`` is None."""


def verdicts(strict: Scored, flexible: Scored) -> dict:
    """The two scores of a completion as they stand in a file."""
    return {
        "parsed": strict.parsed,
        "correct": strict.correct,
        "flexible_parsed": flexible.parsed,
        "flexible_correct": flexible.correct,
    }


class Task(Protocol):
    """One data set; each module of a task holds one as ``TASK``."""

    name: str
    """What a specification calls it: ``name`` (the hub) or ``name:PATH``."""
    splits: tuple[str, ...]
    """Of ``train``, ``validation``, ``test``: what the hub's data set or a folder keeps apart by itself."""
    splits_files: bool
    """Whether a single file holds every split too (parted by a hash of each row's text); else it is one split."""
    delimiters: tuple[str, ...]
    """Strings before an answer, which ISAD masks more often: the default of ``data.delimiters``."""

    def load(self, where: str | None, split: str, options: TaskOptions) -> Sequence[dict]:
        """Examples in the data set's order, as :func:`example` makes them.

        Args:
            where: a local file or folder in the data set's own format; None: the hub.
            split: one of ``splits``; a single file without splits is read whole whatever it says.

        Raises:
            UserError: whatever is wrong with the file, by line and key; no hub; a split that is not there.
        """
        ...

    def score(self, completion: str, gold: Any, *, flexible: bool = False) -> Scored:
        """Score one completion. No completion whatever raises.

        Args:
            gold: the data set's own answer field, as :meth:`load` gives it or as a user's file does.
            flexible: read the answer from places other than the one that the task asks for, too.

        Raises:
            UserError: a gold without an answer ("expected ..., found ..."), whatever the completion.
        """
        ...


def example(prompt: str, response: str, origin: str, gold: Any = None) -> dict:
    """``{"messages", "origin", "gold"}``: a user's turn, the assistant's, ``file:line``, the answer field.

    Without ``gold`` the key is left out: the row can be trained on, not scored.
    """
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    row = {"messages": messages, "origin": origin}
    return row if gold is None else row | {"gold": gold}
