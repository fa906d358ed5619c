"""Scores of completions: by the package's ``score_answer``, and of gsm_symbolic by GSM8K's rule."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import Any

from stabledllm.errors import UserError
from stabledllm.tasks import numbers
from stabledllm.tasks.gym.corrected import CORRECTED
from stabledllm.tasks.gym.guard import guarded_eval
from stabledllm.tasks.gym.package import NAME, quiet, registered
from stabledllm.tasks.gym.spec import GSM_SYMBOLIC
from stabledllm.tasks.scoring import parse_answer, parse_gold, score_number
from stabledllm.tasks.task import Scored

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BEHIND = re.compile(r".*(?:####|\banswer(?:\s+is)?\s*:)[*_\s]*(\S.*)", re.DOTALL | re.IGNORECASE)
_UNREADABLE = re.compile(r"(?<![a-z])nan|\d[\d._]*e[+-]?[\d_]{4}", re.IGNORECASE)
"""NaN, which complex_arithmetic takes for every number, and 1e999999999, which coin_flip writes out in digits."""
_GRIDS = ("arc_agi", "rearc")
"""Sets that compare a grid with a tuple of tuples, which JSON gives back as lists."""


def score(completion: str, gold: Any, *, flexible: bool) -> Scored:
    """Score a completion against an item of the package, or against a number as GSM8K's.

    Raises:
        UserError: a gold that is neither.
    """
    if not isinstance(gold, dict):
        return _score_number(completion, gold, flexible)
    name = _checked(gold)
    if name == GSM_SYMBOLIC:
        return _score_number(completion, gold["answer"], flexible)
    given = _loose(completion) if flexible else completion.strip()
    if not given:
        return Scored(None, None, 0.0)
    credit = _credit(name, given, gold)
    return Scored(given, credit == 1.0, credit)


def _score_number(completion: str, gold: Any, flexible: bool) -> Scored:
    """GSM8K's rule; a completion that is a number and nothing else is an answer too, as in bare responses."""
    expected = parse_gold(gold)
    if flexible or parse_answer(completion) is not None:
        return score_number(completion, gold, flexible=flexible)
    try:
        given = parse_gold(completion)
    except UserError:
        return Scored(None, None)
    return Scored(given, numbers.same(given, expected))


def _checked(gold: dict) -> str:
    """The name of the set that an item is from, if it is one."""
    metadata = gold.get("metadata")
    name = metadata.get("source_dataset") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or "answer" not in gold:
        raise UserError(
            f"expected a gold item of {NAME} with 'answer' and 'metadata', which names its 'source_dataset', or a "
            f"number, found an object with {', '.join(map(repr, gold)) or 'nothing'}."
        )
    return name


def _loose(completion: str) -> str:
    """The text between the last answer tags, behind the last ``####`` or ``answer:``, or all of it."""
    tags = list(_TAG.finditer(completion))
    closed = [(a.end(), b.start()) for a, b in pairwise(tags) if (a[1], b[1]) == ("", "/")]
    if closed:
        start, end = closed[-1]
        return completion[start:end].strip()
    behind = _BEHIND.fullmatch(completion)
    return (behind[1] if behind else completion).strip()


def _credit(name: str, given: str, item: dict) -> float:
    """The package's score in [0, 1]; 0 where its scorer cannot read the answer and raises an error."""
    if _UNREADABLE.search(given) and not _UNREADABLE.search(str(item["answer"])):
        return 0.0
    if name in _GRIDS:
        item = _with_tuples(item)
    scorer = _scorer(name)
    try:
        with quiet(), guarded_eval():
            credit = float(scorer(given, item))
    except Exception:  # each set has its own, on answers of another form
        return 0.0
    if credit == 1.0 and name in CORRECTED:
        credit = CORRECTED[name](given, str(item["answer"]))
    return min(max(credit, 0.0), 1.0)


@lru_cache(maxsize=128)
def _scorer(name: str):
    spec = f"{NAME}:{name}"
    cls, config = registered(spec).get(name, (None, None))
    if cls is None:
        raise UserError(f"expected a gold item of a set that the installed {NAME} has, found one of '{name}'.")
    with quiet():
        return cls(config=config(seed=0, size=1)).score_answer


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value
