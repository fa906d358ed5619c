"""The scorer: equality by value, never an exception whatever the completion."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.tasks.scoring import parse_answer, score_number, wilson_interval
from tests.checks.scoring import VERDICTS, check_gold_is_required, check_verdict


@pytest.mark.parametrize(("completion", "gold", "verdict"), VERDICTS)
def test_verdicts(completion, gold, verdict):
    check_verdict(completion, gold, verdict)


def test_gold_without_answer_is_an_error():
    check_gold_is_required()


@given(st.one_of(st.text(), st.text(alphabet="#0123456789.,-+$€ \n٣²eE"), st.text().map("#### ".__add__)))
def test_any_completion_gets_a_verdict(completion):
    assert score_number(completion, "#### 72").correct in (True, False, None)


@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_every_way_to_write_an_integer_is_equal(value, zeros):
    written = f"{value:,}" + ("." + "0" * zeros if zeros else "")
    assert score_number(f"so #### {written}\n", f"#### {value}").correct is True
    assert score_number(f"#### {value + 1}", f"#### {value}").correct is False


@given(st.text(alphabet="abc #.,"))
def test_nothing_to_read_is_none(text):
    assert parse_answer(text) is None
    assert score_number(text, "#### 0").correct is None


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (3, 10), (500, 1319)])
def test_wilson_interval(correct, n):
    """The ends solve |p - share| = z sqrt(p (1 - p) / n)."""
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            sd = math.sqrt(end * (1 - end) / n)
            assert abs(end - correct / n) == pytest.approx(1.959963984540054 * sd, abs=1e-12)


def test_wilson_interval_of_nothing():
    assert all(math.isnan(x) for x in wilson_interval(0, 0))
