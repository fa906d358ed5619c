"""What decides a number is in the digest of the data; where it stood is not."""

from __future__ import annotations

import numpy as np
import pytest

from stabledllm.data.digests import content_digest

TURNS = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]
EXAMPLES = [
    {"messages": TURNS, "gold": "2", "task": "gsm8k", "origin": "a:1"},
    {"text": "A document.", "origin": "a:2"},
    {"input_ids": [1, 2, 3], "prompt_length": 1, "origin": "a:3"},
    {"caption": "a circle", "codes": np.array([1, 2, 3], dtype=np.uint16), "origin": "a:4"},
]


def test_where_they_stood_and_how_numbers_are_held_does_not_count():
    moved = [example | {"origin": "elsewhere"} for example in EXAMPLES]
    moved[2] = moved[2] | {"input_ids": np.array([1, 2, 3], dtype=np.int32)}
    moved[3] = moved[3] | {"codes": [1, 2, 3]}
    assert content_digest(moved) == content_digest(EXAMPLES)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (0, {"messages": [TURNS[0], TURNS[1] | {"content": "3"}]}),
        (0, {"messages": [TURNS[0] | {"content": "1+2=?"}, TURNS[1]]}),
        (0, {"gold": "3"}),
        (0, {"task": "hitab"}),
        (1, {"text": "A document"}),
        (2, {"input_ids": [1, 2, 4]}),
        (2, {"prompt_length": 2}),
        (0, {"tools": [{"name": "add"}]}),
        (2, {"given": [2]}),
        (3, {"caption": "a square"}),
        (3, {"codes": np.array([1, 2, 4])}),
    ],
)
def test_everything_that_decides_a_number_counts(place, change):
    other = list(EXAMPLES)
    other[place] = other[place] | change
    assert content_digest(other) != content_digest(EXAMPLES)


def test_their_order_and_number_count():
    assert content_digest(EXAMPLES[::-1]) != content_digest(EXAMPLES)
    assert content_digest(EXAMPLES[:3]) != content_digest(EXAMPLES)
