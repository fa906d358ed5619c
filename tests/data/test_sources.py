"""The three row formats, GSM8K, and every kind of bad input: one sentence that names file, line and key."""

import json

import pytest

from stabledllm.data.holding_out import hold_out
from stabledllm.data.sources import load_examples, own_splits
from stabledllm.errors import UserError
from tests.checks.data import check_hold_out, example

CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
    {"role": "user", "content": "trailing"},
]


@pytest.fixture
def load(tmp_path):
    """Write records (or raw text) to a file and load it."""

    def run(content, kind: str = "jsonl", **kwargs) -> list[dict]:
        path = tmp_path / "rows.jsonl"
        text = content if isinstance(content, str) else "".join(json.dumps(r) + "\n" for r in content)
        path.write_text(text, encoding="utf-8")
        return load_examples(f"{kind}:{path}", split="train", n=0, seed=0, **kwargs)

    return run


def test_last_assistant_turn_is_the_response(load):
    (row,) = load([{"messages": CHAT}])
    assert row["messages"] == CHAT[:5]


def test_every_turn_makes_a_row_that_sees_no_later_turn(load):
    assert [r["messages"] for r in load([{"messages": CHAT}], every_turn=True)] == [CHAT[:3], CHAT[:5]]


def test_prompt_and_response(load):
    (row,) = load([{"prompt": "p", "response": "r"}])
    assert row["messages"] == example("p", "r")["messages"]


def test_token_ids(load):
    (row,) = load([{"input_ids": [1, 2, 3], "prompt_length": 2}])
    assert (row["input_ids"], row["prompt_length"]) == ([1, 2, 3], 2)


def test_formats_may_be_mixed_and_blank_lines_skipped_but_counted(load):
    rows = load('\n{"prompt": "p", "response": "r"}\n\n{"input_ids": [1, 2], "prompt_length": 0}\n')
    assert [r["origin"].rpartition(":")[2] for r in rows] == ["2", "4"]


def test_gsm8k_format(load):
    (row,) = load([{"question": "q", "answer": "work\n#### 72"}], kind="gsm8k")
    assert row["messages"] == example("q", "work\n#### 72")["messages"]


GOOD = {"prompt": "p", "response": "r"}
BAD = {
    "broken json": ([GOOD], '{"prompt": \n', "broken JSON"),
    "not an object": ([GOOD, [1]], "", "found list"),
    "no known key": ([GOOD, {"text": "x"}], "", "found keys ['text']"),
    "no response": ([GOOD, {"prompt": "p"}], "", "'response', found nothing"),
    "empty response": ([GOOD, {"prompt": "p", "response": " "}], "", "non-empty 'response'"),
    "response not text": ([GOOD, {"prompt": "p", "response": 3}], "", "'response', found int"),
    "messages not a list": ([GOOD, {"messages": "x"}], "", "'messages'"),
    "messages empty": ([GOOD, {"messages": []}], "", "assistant turn"),
    "unknown role": ([GOOD, {"messages": [{"role": "tol", "content": "x"}]}], "", "found 'tol' (did you mean 'tool'?)"),
    "role missing": ([GOOD, {"messages": [{"content": "x"}]}], "", "found None"),
    "role not text": ([GOOD, {"messages": [{"role": ["user"], "content": "x"}]}], "", "found ['user']"),
    "content missing": ([GOOD, {"messages": [{"role": "user"}]}], "", "'content'"),
    "no assistant turn": ([GOOD, {"messages": CHAT[:2]}], "", "assistant turn"),
    "assistant first": ([GOOD, {"messages": CHAT[2:3]}], "", "assistant turn"),
    "ids not a list": ([GOOD, {"input_ids": "1 2", "prompt_length": 1}], "", "'input_ids'"),
    "negative id": ([GOOD, {"input_ids": [-1, 2], "prompt_length": 1}], "", "'input_ids'"),
    "bool id": ([GOOD, {"input_ids": [True, 2], "prompt_length": 1}], "", "'input_ids'"),
    "no prompt_length": ([GOOD, {"input_ids": [1, 2]}], "", "'prompt_length'"),
    "prompt_length too long": ([GOOD, {"input_ids": [1, 2], "prompt_length": 3}], "", "'prompt_length'"),
    "nothing after the prompt": ([GOOD, {"input_ids": [1, 2], "prompt_length": 2}], "", "response token"),
    "no ids": ([GOOD, {"input_ids": [], "prompt_length": 0}], "", "response token"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_name_file_line_and_key(name, load):
    records, tail, says = BAD[name]
    with pytest.raises(UserError) as caught:
        load("".join(json.dumps(r) + "\n" for r in records) + tail)
    message = str(caught.value)
    assert "rows.jsonl:2: " in message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"question": "q"}, "'answer'"),
        ({"answer": "a"}, "'question'"),
        ({"question": "", "answer": "a"}, "non-empty 'question'"),
    ],
)
def test_bad_gsm8k_rows_name_line_and_key(record, says, load):
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: .*{says}"):
        load([record], kind="gsm8k")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file(content, load):
    with pytest.raises(UserError, match=r"rows\.jsonl: expected at least one row, found an empty file"):
        load(content)


def test_missing_file_folder_and_other_bytes(tmp_path):
    for path, says in ((tmp_path / "none.jsonl", "found nothing"), (tmp_path, "in this folder, found none")):
        with pytest.raises(UserError, match=says):
            load_examples(f"jsonl:{path}", split="train", n=0, seed=0)
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é", "response": "r"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.jsonl: expected UTF-8"):
        load_examples(f"jsonl:{tmp_path / 'latin.jsonl'}", split="train", n=0, seed=0)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("jsonll:x", "did you mean 'jsonl'"),
        ("gsm8k", "expected gsm8k:PATH"),
        ("synthetic:heard", "did you mean 'hard'"),
    ],
)
def test_bad_specifications(spec, says):
    with pytest.raises(UserError, match=says):
        load_examples(spec, split="train", n=1, seed=0)


def test_synthetic_by_name():
    rows = load_examples("synthetic:easy", split="test", n=3, seed=0)
    assert [r["origin"] for r in rows] == [f"synthetic:easy test row {i}" for i in range(3)]
    assert own_splits("synthetic:easy") == ("train", "validation", "test")
    assert own_splits("jsonl:x") == ()


def test_held_out_rows_share_no_prompt_with_training():
    check_hold_out()


def test_hold_out_does_not_depend_on_order():
    examples = [example(f"q{i}", "a", f"f:{i}") for i in range(60)]
    held = hold_out(examples, 0.2, 3)[1]
    backwards = hold_out(examples[::-1], 0.2, 3)[1]
    assert {e["origin"] for e in held} == {e["origin"] for e in backwards}
    assert held != hold_out(examples, 0.2, 4)[1]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_empty_side_is_refused(share):
    with pytest.raises(UserError, match="at least one of each"):
        hold_out([example("q", "a")], share, 0)
