"""Rows in flat arrays are the rows that were laid down, at five bytes a token; no row holds what it must not."""

from __future__ import annotations

import json
import random
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_bundle
from stabledllm.data.ids import refuse_ids
from stabledllm.data.rows import EncodingOptions, TokenRow, encode_examples, maskable_sizes
from stabledllm.data.sources import load_examples
from stabledllm.data.text import pack_documents
from stabledllm.data.token_rows import RowsBuilder, TokenRows, lengths_of, refuse_masked_rows
from stabledllm.decoding import DecodingOptions, generate
from stabledllm.errors import UserError
from stabledllm.forward.elbo import elbo
from stabledllm.integrations.noise import Noise
from stabledllm.models.byte_tokenizer import MASK, ByteTokenizer
from stabledllm.models.loading import load_model
from stabledllm.noise.methods import Method
from tests.checks.data import TOKENIZER

IDS = st.lists(st.integers(0, 263), min_size=1, max_size=9)
ROWS = st.lists(
    st.builds(
        lambda ids, prompt, marks, origin: TokenRow(
            ids, min(prompt, len(ids) - 1), [i for i in marks if i < len(ids)], [0], origin, prompt % 2
        ),
        IDS, st.integers(0, 8), st.lists(st.integers(0, 8), max_size=3), st.text(max_size=5),
    ),
    max_size=7,
)  # fmt: skip


@given(ROWS, st.data())
def test_rows_come_back_as_they_were_laid_down(rows, data):
    flat = RowsBuilder(rows).rows()
    assert list(flat) == rows
    assert flat == rows
    assert lengths_of(flat) == [len(row) for row in rows]
    part = data.draw(st.slices(len(rows)))
    assert list(flat[part]) == rows[part]
    assert lengths_of(flat[part]) == [len(row) for row in rows[part]]
    assert flat.any_marked("delimiter") == any(row.delimiter for row in rows)
    wanted = next((i for i, row in enumerate(rows[part]) if MASK in row.input_ids), None)
    assert flat[part].holding(MASK) == wanted
    for i in range(-len(rows), len(rows)):
        assert flat[i] == rows[i]
    with pytest.raises(IndexError):
        flat[len(rows)]


def test_loading_holds_five_bytes_a_token_and_little_more_on_the_way(tmp_path):
    rng, path = random.Random(0), tmp_path / "rows.jsonl"
    words = ["".join(rng.choice("abcdefgh jklmnop") for _ in range(245)) for _ in range(40)]
    with path.open("w") as file:
        for i in range(1500):
            file.write(json.dumps({"prompt": f"{rng.choice(words)} {i}", "response": rng.choice(words)}) + "\n")
    settings = DataSettings(train=f"jsonl:{path}")
    tracemalloc.start()
    data = load_bundle(settings, TOKENIZER)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tokens = sum(lengths_of(data.train)) + sum(lengths_of(data.validation))
    assert tokens > 650_000
    assert held < 5 * tokens, f"{held / tokens:.2f} bytes a token"
    assert peak < 10 * tokens, f"{peak / tokens:.2f} bytes a token on the way"


BAD_IDS = [
    ([5, MASK, 7], 1, r"expected no mask token within the row, found its id 256 at place 1"),
    ([MASK, 6, 7], 1, r"found its id 256 at place 0"),
    ([5, 264], 1, "below 264, found 264"),
    ([5, -1], 1, "found -1 at place 1"),
    ([5, 6.0], 1, r"found 6\.0 at place 1"),
    ([True, 6], 1, "found True at place 0"),
    ([5, None], 1, "found None at place 1"),
    ([5, "6"], 1, "found '6' at place 1"),
    ([5, [6]], 1, r"found \[6\] at place 1"),
    ([5, 2**31], 1, "found 2147483648 at place 1"),
    ([5, 10**30], 1, r"found 10+\.\.\. at place 1"),
    ({"0": 5}, 1, "expected a list of token ids under 'input_ids', found dict"),
    ([5, 6], -1, "'prompt_length'"),
    ([5, 6], 3, "'prompt_length'"),
    ([5, 6], 1.0, "'prompt_length'"),
    ([5, 6], True, "'prompt_length'"),
    ([5, 6], 2, "at least one response token"),
]


@pytest.mark.parametrize(("ids", "prompt", "says"), BAD_IDS)
def test_ids_that_no_row_may_hold_are_named_by_file_and_line(tmp_path, ids, prompt, says):
    path = tmp_path / "rows.jsonl"
    rows = [{"input_ids": [5, 6, 7], "prompt_length": 1}, {"input_ids": ids, "prompt_length": prompt}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"^{path}:2: .*{says}"):
        encode_examples(load_examples(f"jsonl:{path}", split="train", n=0, seed=0), TOKENIZER, EncodingOptions())


class Leaky(ByteTokenizer):
    """A tokenizer that reads ``#`` as the mask token and ``_`` as padding, which ends no text."""

    padding_id = 263

    def encode(self, text: str) -> list[int]:
        return [{"#": MASK, "_": 263}.get(chr(i)) or i for i in super().encode(text)]


@pytest.mark.parametrize(("prompt", "response"), [("a#", "b"), ("a", "b#"), ("_", "b"), ("a", "_")])
def test_text_that_a_tokenizer_reads_as_mask_or_padding_is_named(prompt, response):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    with pytest.raises(UserError, match=r"^f:3: expected no (mask|padding) token within the row"):
        encode_examples([{"messages": messages, "origin": "f:3"}], Leaky(), EncodingOptions(delimiters=()))
    with pytest.raises(UserError, match=r"^d:1: expected no (mask|padding) token"):
        pack_documents([{"text": prompt + response, "origin": "d:1"}], Leaky(), length=4)


def test_rows_made_by_hand_are_refused_wherever_they_go():
    row = TokenRow([5, 6, MASK, 7], 1)
    with pytest.raises(UserError, match=r"^row 1: expected no mask token"):
        refuse_masked_rows([TokenRow([5, 6], 1), row], MASK)
    with pytest.raises(UserError, match=r"^f:9: expected no mask token"):
        refuse_masked_rows(RowsBuilder([TokenRow([MASK, 6], 1, origin="f:9")]).rows(), MASK)
    refuse_masked_rows([row], None)
    tiny = load_model("tiny")
    with pytest.raises(UserError, match="elbo: expected clean tokens, found the mask token 256 in row 0"):
        elbo(tiny.model, [row], "standard", 2, seed=0, step=0)
    options, ids = DecodingOptions(length=8, steps=8, block=8), {"mask_id": MASK, "eos_id": 257, "pad_id": 257}
    with pytest.raises(UserError, match="prompt 2: expected no mask token, found its id 256"):
        generate(tiny.model, [[5], [5, MASK]], options, **ids)
    clean = torch.tensor([[5, 6, 7, MASK], [5, MASK, 7, 8]])
    maskable = torch.tensor([[False, True, True, False], [False, False, True, True]])
    with pytest.raises(UserError, match="row 1 of the batch: expected clean tokens, found the mask token 256"):
        Noise("standard", mask_id=MASK, seed=0).draw(clean, maskable, 0)


@pytest.mark.parametrize("syrm", [False, True])
def test_sizes_of_a_million_rows_are_known_without_making_them(monkeypatch, syrm):
    plain = [TokenRow(list(range(4 + i)), 2, syntax=[0, 1][: i % 3], tail=i % 2) for i in range(7)]
    rows = RowsBuilder(plain).rows()[1::2]
    monkeypatch.setattr(TokenRows, "__getitem__", lambda self, place: pytest.fail("a row was made"))
    method = Method.parse("syrm" if syrm else "standard")
    assert maskable_sizes(rows, method).tolist() == [row.maskable_count(syrm) for row in plain[1::2]]
    assert maskable_sizes(plain[1::2], method).tolist() == maskable_sizes(rows, method).tolist()


def test_padding_within_a_row_is_refused_with_what_to_do_where_it_ends_texts():
    tokenizer = SimpleNamespace(vocab_size=9, mask_token_id=8, padding_id=7)
    refuse_ids([1, 2], tokenizer, "x:1")
    with pytest.raises(UserError, match=r"x:1: .*padding token within the row.* 7 at place 1 \(.*end_token\)"):
        refuse_ids([1, 7], tokenizer, "x:1")
    tokenizer.padding_id = None
    refuse_ids([1, 7], tokenizer, "x:1")
