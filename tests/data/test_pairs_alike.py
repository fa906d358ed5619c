"""Pairs of which no answer is better: dropped and counted, and refused where nothing else is left."""

from __future__ import annotations

import pytest

from stabledllm.data.pairs import encode_pairs
from stabledllm.data.rows import EncodingOptions
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


def pair(chosen: str, rejected: str, number: int) -> dict:
    def answer(text: str) -> dict:
        return {"role": "assistant", "content": text}

    messages = [{"role": "user", "content": "2+2=?"}, answer(chosen)]
    return {"messages": messages, "rejected": answer(rejected), "origin": f"pairs.jsonl:{number}"}


def test_data_of_equal_answers_alone_are_refused_by_that():
    with pytest.raises(UserError, match="whose answers differ, found 2 with the same answer twice"):
        encode_pairs([pair("4", "4", 1), pair("5", "5", 2)], TOKENIZER, EncodingOptions(max_len=64))


def test_beside_others_they_are_dropped_and_counted():
    encoded = encode_pairs([pair("4", "4", 1), pair("4", "5", 2)], TOKENIZER, EncodingOptions(max_len=64))
    assert len(encoded.chosen) == len(encoded.rejected) == 1
    assert encoded.alike == ["pairs.jsonl:1"]
