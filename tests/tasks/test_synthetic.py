"""The synthetic task: deterministic, correct, and with disjoint splits."""

import re

import pytest

from stabledllm.errors import UserError
from stabledllm.tasks.synthetic import LARGEST, LEVELS, Difficulty, difficulty, example, examples, split_of
from tests.checks.data import check_synthetic_splits

LEVEL = Difficulty(2, 5, 30)


def test_deterministic_and_extendable():
    twenty = examples("train", 20, 3, LEVEL)
    assert twenty[:10] == examples("train", 10, 3, LEVEL)
    assert twenty[10:] == [example("train", 3, i, LEVEL) for i in range(10, 20)]
    assert twenty != examples("train", 20, 4, LEVEL)


def test_splits_are_disjoint():
    check_synthetic_splits()


def test_the_split_is_in_the_text():
    for split in ("train", "validation", "test"):
        assert {split_of(r["prompt"]) for r in examples(split, 30, 0, LEVEL)} == {split}


@pytest.mark.parametrize("level", [*LEVELS.values(), LEVEL], ids=str)
def test_arithmetic_is_right_step_by_step(level):
    for row in examples("train", 100, 1, level):
        question = row["prompt"].removesuffix("=?")
        assert re.fullmatch(r"\d+([+-]\d+)+", question)
        *lines, answer = row["response"].split("\n")
        operands = re.findall(r"[+-]\d+", question)
        assert level.min_steps <= len(lines) == len(operands) <= level.max_steps
        value = int(re.match(r"\d+", question)[0])
        for line, operand in zip(lines, operands, strict=True):
            after = value + int(operand)
            assert line == f"{value}{operand}={after}"
            assert 0 <= after <= LARGEST
            assert 1 <= abs(int(operand)) <= level.max_operand
            value = after
        assert answer == f"#### {value}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("hard", LEVELS["hard"]), ("5-8/20", Difficulty(5, 8, 20)), ("4", Difficulty(4, 4)), ("2-3", Difficulty(2, 3))],
)
def test_named_difficulties(name, expected):
    assert difficulty(name) == expected


@pytest.mark.parametrize("name", ["", "esay", "8-5", "0-3", "1-2/0", "1-2/x", "1-41", "1-2/100"])
def test_bad_difficulties_are_one_sentence(name):
    with pytest.raises(UserError, match=r"^synthetic: [^\n]*\.$"):
        difficulty(name)
