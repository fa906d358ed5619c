"""Rows of one's own: every form gives the same rows, and a wrong one is refused with its index."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from stabledllm.data.token_rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.lab.own.rows import own_rows

MASK = 9
IDS = [[4, 5, 6, 7], [5, 6, 7, 8]]
LABELS = [[-100, -100, 6, 7], [-100, 6, 7, 8]]


@pytest.mark.parametrize(
    ("rows", "prompt_length"),
    [
        ([TokenRow(IDS[0], 2), TokenRow(IDS[1], 1)], None),
        ([(IDS[0], 2), (tuple(IDS[1]), 1)], None),
        ([(torch.tensor(IDS[0]), torch.tensor(2)), (np.array(IDS[1]), np.int64(1))], None),
        ([{"input_ids": IDS[0], "prompt_length": 2}, {"input_ids": torch.tensor(IDS[1]), "prompt_len": 1}], None),
        ([{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, LABELS, strict=True)], None),
        (
            [
                {"input_ids": [0, *IDS[0]], "labels": [-100, *LABELS[0]], "attention_mask": [0, 1, 1, 1, 1]},
                {"input_ids": [*IDS[1], 0], "prompt_length": 1, "attention_mask": torch.tensor([1, 1, 1, 1, 0])},
            ],
            None,
        ),
        (torch.tensor(IDS), torch.tensor([2, 1])),
        (np.array(IDS), [2, 1]),
        (iter(IDS), [2, 1]),
    ],
)
def test_every_form_gives_the_same_rows(rows, prompt_length):
    made = own_rows(rows, MASK, prompt_length)
    assert [(row.input_ids, row.prompt_length, row.response_length) for row in made] == [
        (IDS[0], 2, 2),
        (IDS[1], 1, 3),
    ]


def test_one_prompt_length_is_every_row_s():
    assert [row.prompt_length for row in own_rows(torch.tensor(IDS), MASK, 3)] == [3, 3]


def test_marks_of_token_rows_are_kept():
    assert own_rows([TokenRow(IDS[0], 1, delimiter=[2])], MASK)[0].delimiter == [2]


GOOD = (IDS[0], 1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ((IDS[0], 4), "row 1: expected a prompt_length from 0 to 3, found 4: no token is left to mask."),
        ((IDS[0], -1), "row 1: expected a prompt_length from 0 to 3, found -1"),
        ((IDS[0], "1"), "row 1: expected a whole number as prompt_length, found '1'."),
        ((IDS[0], True), "row 1: expected a whole number as prompt_length, found True."),
        (([4, 9, 5], 1), "row 1: expected clean ids, found the mask token 9 at place 1"),
        (([4, 5.5], 1), "row 1: expected ids that are whole numbers, found 5.5 at place 1."),
        (([4, -5], 1), "row 1: expected ids from 0 to 2**31 - 1, found -5."),
        (([], 0), "row 1: expected at least one token, found none."),
        ((torch.zeros(2, 3).long(), 1), "row 1: expected ids of one dimension, whole numbers, found int64 (2, 3)."),
        ((torch.zeros(3), 1), "row 1: expected ids of one dimension, whole numbers, found float32 (3,)."),
        (5, "row 1: expected a TokenRow, a pair (ids, prompt_length), or a dictionary"),
        (("text", 1), "row 1: expected a TokenRow, a pair"),
        ({"ids": IDS[0]}, "row 1: expected the key 'input_ids', found ['ids']."),
        ({"input_ids": IDS[0]}, "row 1: expected the key 'prompt_length' or 'labels', found ['input_ids']."),
        ({"input_ids": IDS[0], "labels": [-100, 5]}, "row 1: expected as many labels as ids, 4, found 2."),
        (
            {"input_ids": IDS[0], "labels": [-100, 5, -100, 7]},
            "row 1: expected labels that are -100 at the prompt alone, found -100 at place 2",
        ),
        ({"input_ids": IDS[0], "labels": [-100] * 4}, "row 1: expected a prompt_length from 0 to 3, found 4"),
        (TokenRow(IDS[0], 2, tail=2), "row 1: expected at least one token to mask, found none."),
    ],
)
def test_a_wrong_row_is_refused_with_its_index(wrong, told):
    with pytest.raises(UserError, match=re.escape(told)):
        own_rows([GOOD, wrong], MASK)


@pytest.mark.parametrize(
    ("rows", "prompt_length", "told"),
    [
        ([], None, "rows: expected at least one row, found none."),
        ("abc", None, "rows: expected a sequence of rows, found str"),
        (None, None, "rows: expected a sequence of rows, found NoneType"),
        ({"input_ids": IDS}, None, "rows: expected a sequence of rows, found dict"),
        (torch.tensor(IDS), None, "rows: expected prompt_length beside a tensor of ids, found none."),
        (torch.tensor(IDS), [1], "prompt_length: expected one number or one for each of 2 rows, found 1."),
        ([5], 1, "row 0: expected the ids of a row beside prompt_length, found int."),
    ],
)
def test_what_is_no_sequence_of_rows_is_refused(rows, prompt_length, told):
    with pytest.raises(UserError, match=re.escape(told)):
        own_rows(rows, MASK, prompt_length)
