"""The real GSM8K files, where they are at hand."""

import os
from pathlib import Path

import pytest

from stabledllm.data.rows import EncodingOptions, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.tasks import gsm8k
from stabledllm.tasks.scoring import is_correct, parse_answer


@pytest.fixture(scope="module")
def test_file() -> Path:
    """``gsm8k/test.jsonl`` under $STABLEDLLM_DATA or beside the repository."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    for root in (os.environ.get("STABLEDLLM_DATA"), beside):
        if root and (path := Path(root) / "gsm8k" / "test.jsonl").is_file():
            return path
    pytest.skip("GSM8K is not at hand; set STABLEDLLM_DATA to the folder that holds gsm8k/test.jsonl")


def test_every_row_loads_and_every_gold_answer_scores_itself(test_file):
    rows = gsm8k.load(test_file)
    assert len(rows) == 1319
    for row in rows:
        assert is_correct(row["response"], row["response"]) is True, row["origin"]
    assert any("," in row["response"].rpartition("####")[2] for row in rows)
    assert {"," in (parse_answer(row["response"]) or ",") for row in rows} == {False}


def test_encodes_whole(test_file):
    examples = load_examples(f"gsm8k:{test_file}", split="test", n=0, seed=0)[:100]
    encoded = encode_examples(examples, ByteTokenizer(), EncodingOptions(max_len=700))
    assert len(encoded.rows) + len(encoded.dropped) == 100
    assert all(len(row.delimiter) == 4 for row in encoded.rows)
