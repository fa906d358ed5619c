"""Encoding and batching: nothing is cut, the end token is there, padding is inert."""

import pytest
import torch

from stabledllm.data.rows import EncodingOptions, TokenRow, collate, encode_examples
from stabledllm.errors import UserError
from tests.checks.data import TOKENIZER, check_end_token, check_nothing_is_cut, check_padding, check_syrm, example


def encode(*examples, **options):
    return encode_examples(examples, TOKENIZER, EncodingOptions(**options))


def test_over_length_rows_are_dropped_and_counted_never_cut():
    check_nothing_is_cut()


def test_summary_counts_and_names_the_dropped():
    long = [example("q", "x" * 60, f"f:{i}") for i in range(5)]
    encoded = encode(example("q", "a"), *long, max_len=20)
    assert encoded.summary(20) == "1 rows; dropped 5 longer than max_len=20 (f:0, f:1, f:2, ...)"
    assert encode(example("q", "a")).summary(1024) == "1 rows, none longer than max_len=1024"


def test_over_length_row_is_refused_by_option():
    with pytest.raises(UserError, match=r"^f:7: expected at most max_len=20 tokens, found 64\.$"):
        encode(example("q", "x" * 60, "f:7"), max_len=20, over_length="refuse")


def test_a_row_of_exactly_max_len_is_kept():
    assert len(encode(example("q", "a"), max_len=5).rows[0]) == 5


def test_nothing_left_is_refused():
    with pytest.raises(UserError, match="found none"):
        encode(example("q", "x" * 60), max_len=20)


def test_rows_end_with_a_supervised_end_token():
    check_end_token()


@pytest.mark.parametrize("length", [1, 7, 8, 9])
def test_responses_are_filled_with_supervised_end_tokens(length):
    row = encode(example("q", "a" * length), pad_response_to=8).rows[0]
    assert row.response_length % 8 == 0
    assert row.response_length - length <= 8
    assert set(row.input_ids[row.prompt_length + length :]) == {TOKENIZER.eos_token_id}


def test_token_ids_pass_unchanged():
    row = encode({"input_ids": [5, 6, 7], "prompt_length": 1, "origin": "f:1"}).rows[0]
    assert (row.input_ids, row.prompt_length) == ([5, 6, 7], 1)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"input_ids": [5, 264], "prompt_length": 1, "origin": "f:3"}, "^f:3: expected token ids below 264, found 264"),
        (example("q", "", "f:4"), "^f:4: expected a response of at least one token"),
    ],
)
def test_bad_rows_are_named(bad, says):
    with pytest.raises(UserError, match=says):
        encode(bad)


@pytest.mark.parametrize("options", [{"over_length": "cut"}, {"max_len": 1}, {"pad_response_to": 0}, {"syntax": "xml"}])
def test_bad_options(options):
    with pytest.raises(UserError, match=r"^data"):
        encode(example("q", "a"), **options)


def test_padding_is_inert():
    check_padding()


def test_syrm_masks_the_prompts_syntax():
    check_syrm()


def test_without_syrm_the_prompts_syntax_is_not_maskable():
    assert not bool(collate([TokenRow([5] * 4, 2, syntax=[0])], 0)["maskable"][:, :2].any())


def test_marks_are_at_their_absolute_places():
    row = encode(example("a|b", "so\n#### 7"), syntax="markdown").rows[0]
    start = row.prompt_length + len("so\n")
    assert row.delimiter == list(range(start, start + 4))
    assert row.syntax == [row.input_ids.index(ord("|"))]


def test_a_delimiter_in_the_prompt_is_not_marked():
    assert encode(example("#### 1", "a")).rows[0].delimiter == []


def test_multi_turn_prompts_use_the_chat_template():
    said = (("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b"))
    turns = [{"role": role, "content": text} for role, text in said]
    row = encode({"messages": turns, "origin": "f:1"}).rows[0]
    assert row.input_ids[: row.prompt_length] == TOKENIZER.chat(turns[:3])
    assert TOKENIZER.decode(row.input_ids[row.prompt_length :]) == "b"


def test_collate_dtypes():
    batch = collate([TokenRow([1, 2], 1)], 0)
    assert batch["input_ids"].dtype == torch.int64
    assert {batch[k].dtype for k in ("attention_mask", "maskable", "delimiter")} == {torch.bool}
