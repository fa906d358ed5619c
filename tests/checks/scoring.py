"""What the scorer must say, shared by the tests and the mutation tests."""

from __future__ import annotations

from stabledllm.tasks import scoring

VERDICTS = [
    ("#### 1,234", "#### 1234", True),
    ("#### 1234", "#### 1,234", True),
    ("#### 1,234", "#### 1", False),
    ("#### 2.5", "#### 2.5", True),
    ("#### 2.5", "#### 2", False),
    ("#### 18.0", "#### 18", True),
    ("#### 18", "#### 18.00", True),
    ("#### -3", "#### 3", False),
    ("#### +3", "#### 3", True),
    ("#### $1,200.50", "#### 1200.5", True),
    ("####7", "#### 7", True),
    ("#### .5", "#### 0.5", True),
    ("#### 3 then #### 4", "#### 4", True),
    ("#### 3 then #### 4", "#### 3", False),
    ("#### 7.", "#### 7", True),
    ("the answer is 7", "#### 7", None),
    ("####", "#### 7", None),
    ("#### None", "#### 7", None),
    ("", "#### 0", None),
]
"""(completion, gold, verdict)."""


def check_verdict(completion: str, gold: str, verdict: bool | None) -> None:
    """Equality by value; no answer is None, never correct."""
    found = scoring.score_number(completion, gold).correct
    assert found is verdict, f"{completion!r} against {gold!r}: {found}, expected {verdict}"


def check_gold_is_required() -> None:
    """A gold text without an answer is an error, not a match of nothing with nothing."""
    try:
        found = scoring.score_number("no answer", "no answer").correct
    except ValueError as error:
        if "gold answer" not in str(error):
            raise
        return
    raise AssertionError(f"nothing against nothing was scored {found}")


def check_all_verdicts() -> None:
    for verdict in VERDICTS:
        check_verdict(*verdict)
    check_gold_is_required()
