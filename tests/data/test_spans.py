"""Delimiters and syntax are found on the tokenised text, whatever the pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.data.spans import delimiter_pattern, mark_matches, syntax_pattern
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer


def marked(pieces, pattern) -> list[str]:
    return [p for p, hit in zip(pieces, mark_matches(pieces, pattern), strict=True) if hit]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["so ", "####", " 7"], ["####"]),
        (["so ##", "## 7"], ["so ##", "## 7"]),
        (["a", "", "####", ""], ["####"]),
        (["\\box", "ed{", "x", "}"], ["\\box", "ed{"]),
        (["none"], []),
        ([], []),
    ],
)
def test_delimiters_are_literal_and_may_span_tokens(pieces, expected):
    assert marked(pieces, delimiter_pattern(["####", "\\boxed{"])) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("html", "a<b>c</b> 1 < 2", "<b></b>"),
        ("markdown", "|x|\n|---|", "|||---|"),
        ("code", "if x1:\n  form = (a)", "if:=()"),
    ],
)
def test_syntax_sets(name, text, expected):
    assert "".join(marked(list(text), syntax_pattern(name))) == expected


def test_unknown_syntax_set():
    with pytest.raises(UserError, match="did you mean 'html'"):
        syntax_pattern("htm")


TABLES = [
    (
        "html",
        '<table><tr><th colspan="2">2017</th></tr><tr><td rowspan="2">a < b</td><td>3.5%</td></tr></table>',
        '<table><tr><th colspan="2"></th></tr><tr><td rowspan="2"></td><td></td></tr></table>',
    ),
    ("markdown", "# t\n| a | -3 |\n| :--- | ---: |\n| **b** | 4-5 |", "#|||" + "|:---|---:|" + "|**" + "**||"),
    ("code", "def f(x):\n    return x if x else 2.5", "def(): return if else.".replace(" ", "")),
]


@pytest.mark.parametrize(("name", "text", "expected"), TABLES)
def test_syntax_of_the_tasks_prompts(name, text, expected):
    """Of tables and programs the marks are syntax; cells, numbers, signs and names are not."""
    assert "".join(marked(list(text), syntax_pattern(name))) == expected


@given(st.text(max_size=40))
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(mark_matches([tokenizer.piece(i) for i in ids], delimiter_pattern(["####"]))) == len(ids)


def test_chat_template():
    tokenizer = ByteTokenizer()
    ids = tokenizer.chat([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    assert ids == [260, ord("s"), 258, ord("u"), 259]
    assert max(ids) < tokenizer.vocab_size
