"""A row as it is shown: what is given and what is trained apart, special tokens by name, nothing that acts."""

from __future__ import annotations

from types import SimpleNamespace

from stabledllm.data.rows import EncodingOptions, encode_examples
from stabledllm.data.token_rows import TokenRow
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.hf_tokenizer import load_tokenizer
from stabledllm.training.first_row import LONGEST, MOST_PARTS, parts_of
from tests.fakes import mmada
from tests.fakes.hub_models import write_llada

TOKENIZER = ByteTokenizer()


def shown(row, tokenizer=TOKENIZER) -> list[tuple[str, str]]:
    return [(part.kind, part.text.plain.strip()) for part in parts_of(row, tokenizer)]


def encoded(prompt: str, response: str, tokenizer=TOKENIZER, **options) -> TokenRow:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return encode_examples([{"messages": turns, "origin": "here:1"}], tokenizer, EncodingOptions(**options)).rows[0]


def test_prompt_and_response_are_told_apart():
    row = encoded("What is 2 + 3?", "It is\n5", pad_response_to=10)
    assert shown(row) == [("prompt", "<user>What is 2 + 3?<assistant>"), ("response", "It is\\n5<eos> x 3")]


def test_given_tokens_within_and_behind_the_response():
    row = TokenRow(list(b"ask: abcdefX"), prompt_length=5, given=[7, 8], tail=1)
    assert shown(row) == [
        ("prompt", "ask:"), ("response", "ab"), ("given", "cd"), ("response", "ef"), ("given", "X"),
    ]  # fmt: skip


def test_a_row_without_a_prompt():
    assert shown(TokenRow(list(b"text"), 0)) == [("response", "text")]


def test_nothing_in_a_row_acts_on_the_terminal():
    (_, prompt), (_, response) = shown(encoded("\x1b[31mred\x07 [bold]", "\u202eabc\r"))
    assert prompt == "<user>\\x1b[31mred\\x07 [bold]<assistant>"
    assert response == "\\u202eabc\\r<eos>"


def test_long_parts_are_shortened_in_the_middle():
    (_, prompt), (_, response) = shown(encoded("begin " + "x" * 5000 + " end", "y" * LONGEST, max_len=9000))
    assert prompt.startswith("<user>begin xxx")
    assert prompt.endswith("xxx end<assistant>")
    assert "characters ..." in prompt
    assert len(prompt) < LONGEST + 40
    assert len(response) < LONGEST + 40


def test_special_tokens_of_a_checkpoint_stand_by_their_names(tmp_path):
    tokenizer = load_tokenizer(write_llada(tmp_path), "m", vocab_size=272, mask_token_id=261)
    row = encoded("hi", "yes", tokenizer)
    (_, prompt), (kind, response) = shown(row, tokenizer)
    assert "<|start_header_id|>user<|end_header_id|>" in prompt
    assert "hi" in prompt
    assert (kind, response) == ("response", "yes<|eot_id|>")
    assert shown(TokenRow([271, 104], 0), tokenizer) == [("response", "<271>h")], ()


def test_images_are_counted_and_their_marks_named():
    """The text of the small model's vocabulary is its ids."""
    tokenizer = SimpleNamespace(
        image_tokens=mmada.TOKENS,
        special_name=lambda token: {mmada.TOKENS.bos: "<s>", mmada.TOKENS.eos: "</s>"}.get(token),
        decode=lambda ids: " ".join(map(str, ids)),
    )
    (row,) = mmada.rows(1, width=6)
    words = " ".join(map(str, row.caption))
    assert shown(row, tokenizer) == [
        ("prompt", f"[iPAD] x 2 <|t2i|><s>{words}</s><|soi|>"),
        ("response", "[4 image tokens]"),
        ("given", "<|eoi|>"),
    ]


def test_of_many_parts_the_first_and_the_last_are_shown():
    row = TokenRow(list(b"?" + b"ab" * 50), prompt_length=1, given=list(range(2, 101, 2)))
    found = shown(row)
    assert found[:3] == [("prompt", "?"), ("response", "a"), ("given", "b")]
    assert found[-2:] == [("response", "a"), ("given", "b")]
    assert ("...", f"{101 - MOST_PARTS} parts are not shown") in found
    assert len(found) == MOST_PARTS + 1
    short = TokenRow(list(b"?" + b"ab" * 4), prompt_length=1, given=[2, 4, 6, 8])
    assert len(shown(short)) == MOST_PARTS, "none is left out of as many"
