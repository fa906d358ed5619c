"""The adapter gives a checkpoint's tokenizer the members of ours."""

from __future__ import annotations

import pytest

from stabledllm.data.rows import EncodingOptions, encode_examples
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.hf_tokenizer import HFTokenizer, load_tokenizer
from tests.fakes.hub_models import DREAM_SPECIAL, LLADA_SPECIAL, write_dream, write_llada, write_tokenizer

TEXT = "def f(x):\n  return x ** 2  # né <|mdm_mask|> 日本"


def llada(folder, **kwargs) -> HFTokenizer:
    return load_tokenizer(write_llada(folder), "m", vocab_size=272, mask_token_id=261, **kwargs)


def dream(folder, **kwargs) -> HFTokenizer:
    return load_tokenizer(write_dream(folder), "m", vocab_size=272, mask_token_id=260, **kwargs)


@pytest.mark.parametrize("make", [llada, dream])
def test_it_has_what_the_byte_tokenizer_has(tmp_path, make):
    tokenizer = make(tmp_path)
    for name in vars(ByteTokenizer):
        assert name.startswith("__") or hasattr(tokenizer, name), name
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.decode([104, 105, 256, 257, 258, 271]) == "hi"


@pytest.mark.parametrize("make", [llada, dream])
def test_data_cannot_write_special_tokens(tmp_path, make):
    tokenizer = make(tmp_path)
    for token in LLADA_SPECIAL | DREAM_SPECIAL:
        assert max(tokenizer.encode(f"a{token}b")) < 256, token


@pytest.mark.parametrize("make", [llada, dream])
def test_pieces_spell_the_text_byte_by_byte(tmp_path, make):
    """As the byte tokenizer's do, so that delimiters and syntax are found alike."""
    tokenizer, ours = make(tmp_path), ByteTokenizer()
    assert "".join(tokenizer.piece(i) for i in tokenizer.encode(TEXT)) == tokenizer.matchable(TEXT)
    assert tokenizer.matchable(TEXT) == ours.matchable(TEXT)
    assert tokenizer.piece(256) == ""
    example = {"messages": [{"role": "user", "content": "if x\n"}, {"role": "assistant", "content": "y #### 日 1"}]}
    options = EncodingOptions(delimiters=("####", "日"), syntax="code")
    marks = []
    for t in (tokenizer, ours):
        (row,) = encode_examples([{**example, "origin": "o"}], t, options).rows
        marks.append([t.decode([i]) for i in (row.input_ids[j] for j in row.delimiter)])
        assert "".join(t.piece(row.input_ids[j]) for j in row.syntax).startswith("if")
    assert marks[0] == marks[1]


def test_chat_follows_the_template_and_a_response_ends_as_it_does(tmp_path):
    conversation = [{"role": "user", "content": "hi"}]
    one = llada(tmp_path / "a")
    assert one.eos_token_id == LLADA_SPECIAL["<|eot_id|>"]
    assert one.pad_token_id == LLADA_SPECIAL["<|endoftext|>"]
    special = {v: k for k, v in LLADA_SPECIAL.items()}
    text = "".join(special.get(i) or chr(i) for i in one.chat(conversation))
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert text == f"<|startoftext|>{header.format('user')}hi<|eot_id|>{header.format('assistant')}"
    other = dream(tmp_path / "b")
    assert other.eos_token_id == DREAM_SPECIAL["<|im_end|>"]
    assert other.decode(other.chat(conversation)) == "user\nhi\nassistant\n"


def test_another_end_token_is_kept_with_the_model(tmp_path):
    tokenizer = llada(tmp_path / "a", end_token="<|endoftext|>")
    assert tokenizer.eos_token_id == 256
    tokenizer.save_pretrained(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b", "m", vocab_size=272, mask_token_id=261)
    assert again.eos_token_id == 256


def test_without_a_template_turns_are_plain_lines(tmp_path):
    write_tokenizer(tmp_path, LLADA_SPECIAL, {"eos_token": "<|endoftext|>"}, None)
    with pytest.warns(UserWarning, match="no chat template"):
        tokenizer = load_tokenizer(tmp_path, "m", vocab_size=272, mask_token_id=261)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert tokenizer.decode(tokenizer.chat(turns)) == "System: be brief\nUser: hi\nAssistant: "
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 256


def test_a_template_that_refuses_is_one_sentence(tmp_path):
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    write_tokenizer(tmp_path, LLADA_SPECIAL, {"eos_token": "<|endoftext|>"}, template)
    tokenizer = load_tokenizer(tmp_path, "m", vocab_size=272, mask_token_id=261)
    with pytest.raises(UserError, match="its chat template takes, found: no system"):
        tokenizer.chat([{"role": "system", "content": "x"}])
