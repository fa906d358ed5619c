"""Input that is broken in unusual ways is still told in one sentence, by file and line."""

import pytest

from stabledllm.data.sources import load_examples
from stabledllm.data.spans import delimiter_pattern, mark_matches
from stabledllm.errors import UserError

GOOD = '{"prompt": "a", "response": "b"}'


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"input_ids": [' + "1" * 5000 + '], "prompt_length": 0}', "a number too long"),
        ('{"prompt": "a\\ud800", "response": "b"}', "under 'prompt', found half of a surrogate pair"),
        ('{"prompt": "a", "response": "\\udfff"}', "under 'response', found half of a surrogate pair"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "under 'content', found half of a surrogate pair"),
    ],
    ids=["deep", "long number", "prompt", "response", "content"],
)
def test_a_broken_line_is_named(tmp_path, line, found):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(UserError) as error:
        load_examples(f"jsonl:{path}", split="train", n=1, seed=0)
    assert str(error.value).startswith(f"{path}:2: expected ")
    assert found in str(error.value)


def test_a_pair_of_surrogates_is_one_character(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "\\ud83d\\ude00", "response": "b"}\n')
    (example,) = load_examples(f"jsonl:{path}", split="train", n=1, seed=0)
    assert example["messages"][0]["content"] == "\U0001f600"


def test_a_delimiter_that_begins_another_does_not_hide_it():
    assert mark_matches("xABy", delimiter_pattern(["A", "AB"])) == [False, True, True, False]


def test_an_empty_delimiter_is_refused():
    with pytest.raises(UserError, match=r"^data\.delimiters: "):
        delimiter_pattern(["", "####"])
