"""Drawn responses as rows: what stands behind the end of one."""

from __future__ import annotations

import pytest

from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.evaluation.rollouts import Response

END = 9


def prompt() -> RolloutPrompt:
    return RolloutPrompt(ids=[1, 2], messages=[], columns={}, task=None, gold=None, origin="rows:1")


@pytest.mark.parametrize(
    ("fill", "ends"), [(1, 1), (3, 3), (4, 1), (6, 3), (8, 5)], ids=["bare", "six", "four", "twice", "eight"]
)
def test_end_tokens_follow_up_to_a_multiple(fill: int, ends: int):
    """Three tokens and at least one end token, as the encoder of answers fills them."""
    row = Response([5, 6, 7], ended=True).row(prompt(), END, fill)
    assert row.input_ids == [1, 2, 5, 6, 7] + [END] * ends
    assert row.prompt_length == 2
    assert row.response_length % fill == 0


def test_a_response_that_was_cut_off_is_not_ended():
    """It has the whole length: nothing of what the model saw is missing."""
    assert Response([5, 6, 7], ended=False).row(prompt(), END, 8).input_ids == [1, 2, 5, 6, 7]
