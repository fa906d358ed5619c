"""Documents packed into rows: no token lost, none repeated, and held out by document."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_bundle, load_rows
from stabledllm.data.rows import collate
from stabledllm.data.text import load_documents, pack_documents
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer
from tests.checks.statistics import assert_mean

TOKENIZER = ByteTokenizer()


def documents(n: int, seed: int = 0, longest: int = 60) -> list[dict]:
    rng = random.Random(seed)
    texts = ["".join(rng.choice("abcdefgh ") for _ in range(rng.randint(1, longest))) + f" {i}" for i in range(n)]
    return [{"text": text, "origin": f"document {i}"} for i, text in enumerate(texts)]


@pytest.mark.parametrize("short", [0.0, 0.3])
def test_rows_end_to_end_are_the_documents_each_with_its_end_token(short):
    given = documents(40)
    rows = pack_documents(given, TOKENIZER, length=32, short_share=short, seed=5).rows
    stream = [token for row in rows for token in row.input_ids]
    pieces, piece = [], []
    for token in stream:
        if token == TOKENIZER.eos_token_id:
            pieces.append(TOKENIZER.decode(piece))
            piece = []
        else:
            piece.append(token)
    assert not piece, "the last document is closed too"
    assert sorted(pieces) == sorted(d["text"] for d in given)
    assert pieces != [d["text"] for d in given], "in an order of their own"
    if not short:
        assert all(len(row) == 32 for row in rows[:-1])
    assert all(1 <= len(row) <= 32 for row in rows)


def test_every_token_is_maskable():
    rows = pack_documents(documents(5), TOKENIZER, length=32).rows
    batch = collate(rows, TOKENIZER.pad_token_id)
    assert batch["maskable"].equal(batch["attention_mask"])
    assert int(batch["maskable"].sum()) == sum(len(row) for row in rows)


def test_the_share_and_the_lengths_of_short_rows():
    """A share s of rows is uniform on 1..L, so a row has the length L with probability 1 - s + s / L."""
    length, share = 16, 0.25
    rows = pack_documents(documents(8000), TOKENIZER, length=length, short_share=share, seed=1).rows[:-1]
    assert_mean(np.array([float(len(row) == length) for row in rows]), 1 - share + share / length)
    assert_mean(np.array([float(len(row)) for row in rows if len(row) < length]), length / 2)
    same = pack_documents(documents(8000), TOKENIZER, length=length, short_share=share, seed=1).rows[:-1]
    assert [row.input_ids for row in same] == [row.input_ids for row in rows]
    other = pack_documents(documents(8000), TOKENIZER, length=length, short_share=share, seed=2).rows[:-1]
    assert [len(row) for row in other] != [len(row) for row in rows]


def write_jsonl(path, given, key: str = "text") -> None:
    path.write_text("".join(json.dumps({key: d["text"], "other": "x"}) + "\n" for d in given))


def test_held_out_documents_are_in_no_training_row(tmp_path):
    given = documents(200)
    write_jsonl(tmp_path / "a.jsonl", given)
    settings = DataSettings(train=f"text:{tmp_path / 'a.jsonl'}", max_len=64, validation_share=0.2, short_share=0.1)
    said: list[str] = []
    data = load_bundle(settings, TOKENIZER, said.append)
    train, held = ("".join(chr(t) for row in rows for t in row.input_ids) for rows in (data.train, data.validation))
    end = chr(TOKENIZER.eos_token_id)
    apart = [set(text.split(end)) - {""} for text in (train, held)]
    assert not apart[0] & apart[1]
    assert apart[0] | apart[1] == {d["text"] for d in given}
    assert 20 < len(apart[1]) < 60
    assert {len(row) for row in data.validation[:-1]} == {64}, "validation rows are whole"
    assert not data.test
    assert said[0].startswith("validation: ")
    assert "of 200 rows held out of training (data.validation_share=0.2; 0 trains on every row)" in said[0]
    assert said[1].startswith(f"train: {len(data.train)} rows")


def test_limits_count_rows_not_documents(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", documents(200))
    spec = f"text:{tmp_path / 'a.jsonl'}"
    settings = DataSettings(train=spec, max_len=64, train_rows=7, validation_rows=3)
    data = load_bundle(settings, TOKENIZER)
    assert (len(data.train), len(data.validation)) == (7, 3)
    rows, _ = load_rows(spec, TOKENIZER, settings, "train", 5)
    assert len(rows) == 5


def test_files_folders_and_fields(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "deep" / "a.txt").write_text("first")
    (tmp_path / "ignored.md").write_text("x")
    assert [d["text"] for d in load_documents(tmp_path, ["text"])] == ["second", "first"]
    assert [d["text"] for d in load_documents(tmp_path / "b.txt", ["text"])] == ["second"]
    write_jsonl(tmp_path / "c.jsonl", [{"text": "question"}], "question")
    assert [d["text"] for d in load_documents(tmp_path / "c.jsonl", ["question", "other"])] == ["question\nx"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "expected a .txt or .jsonl file or a folder of .txt files, found nothing"),
        ("a.md", b"x", r"found '\.md'"),
        ("a.txt", b"  \n", "expected a non-empty 'text', found an empty one"),
        ("a.txt", b"\xff\xfe", "expected UTF-8 text"),
        ("a.jsonl", b'{"txt": "x"}\n', r"a\.jsonl:1: expected text under 'text', found nothing"),
        ("a.jsonl", b"", "found an empty file"),
        ("empty", "folder", "expected .txt files in this folder, found none"),
        ("one.txt", b"one document", "a validation share of 0.1 of 1 rows"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, name, content, message):
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_bundle(DataSettings(train=f"text:{tmp_path / name}"), TOKENIZER)
