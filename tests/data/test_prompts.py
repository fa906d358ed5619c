"""Prompts of files: text, one a line, and rows in the formats of training data, with or without their answers."""

from __future__ import annotations

import io
import json

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data.prompting import with_prompts_before
from stabledllm.data.prompts import prompts_in, typed_prompt
from stabledllm.errors import UserError

USER = {"role": "user", "content": "Hi?"}
ROWS = [
    {"prompt": "Hi?"},
    {"prompt": [USER]},
    {"question": "Hi?", "answer": "Yes."},
    {"question": "Hi?"},
    {"instruction": "Hi?", "output": ""},
    {"query": "Hi?", "extra": 1},
    {"input": "Hi?", "output": "Yes."},
    {"caption": "Hi?"},
    {"messages": [USER]},
    {"messages": [USER, {"role": "assistant", "content": "Yes.", "train": True}]},
    {"messages": [USER, {"role": "assistant", "content": "Yes.", "weight": 0}]},
    {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path, **settings):
    return prompts_in(str(path), DataSettings(**settings))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row))
def test_a_row_of_any_format_gives_its_question(tmp_path, row):
    (prompt,) = read(write(tmp_path / "p.jsonl", [row]))
    assert prompt.messages == [USER]
    assert prompt.text == "Hi?"
    assert prompt.row == {"origin": f"{tmp_path / 'p.jsonl'}:1", "prompt": "Hi?"}


def test_what_belongs_to_a_prompt_comes_with_it(tmp_path):
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    before = [USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "1+1?"}]
    rows = [
        {"prompt": "Hi?", "system": "Be short.", "id": 7, "tools": [tool]},
        {"messages": before, "id": "b"},
        {"instruction": "Add.", "input": "1+1"},
    ]
    first, second, third = read(write(tmp_path / "p.jsonl", rows))
    assert [turn["role"] for turn in first.messages] == ["system", "user"]
    assert first.tools == [tool]
    assert first.row == {"origin": f"{tmp_path / 'p.jsonl'}:1", "id": 7, "prompt": first.messages}
    assert second.messages == before == second.row["prompt"]
    assert third.text == "Add.\n1+1"


def test_columns_and_format_say_where_a_prompt_stands(tmp_path):
    columns = {"question": "frage", "answer": "antwort"}
    both, alone, usual = read(
        write(tmp_path / "p.jsonl", [{"frage": "A?", "antwort": "B"}, {"frage": "A?"}, {"prompt": "A?"}]),
        columns=columns,
    )
    assert both.text == alone.text == usual.text == "A?"
    (one,) = read(write(tmp_path / "q.jsonl", [{"prompt": "no", "question": "A?"}]), format="question-answer")
    assert one.text == "A?"


def test_other_files_of_rows_are_read_too(tmp_path):
    (tmp_path / "p.csv").write_text("id,question\n4,Hi?\n")
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "Hi?"}, {"prompt": "Ho?"}]))
    assert [prompt.text for prompt in read(tmp_path / "p.csv")] == ["Hi?"]
    assert [prompt.text for prompt in read(tmp_path / "p.json")] == ["Hi?", "Ho?"]


def test_text_has_a_prompt_on_every_line_that_is_not_blank(tmp_path, monkeypatch):
    content = "\ufeffHi?\r\n\r\n  {not json}\nHo?"
    (tmp_path / "p.txt").write_bytes(content.encode())
    prompts = read(tmp_path / "p.txt")
    assert [prompt.text for prompt in prompts] == ["Hi?", "  {not json}", "Ho?"]
    assert prompts[1].row == {"origin": f"{tmp_path / 'p.txt'}:3", "prompt": "  {not json}"}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi?\nHo?\n")))
    assert [prompt.origin for prompt in read("-")] == ["standard input:1", "standard input:2"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'\n{"prompt": "Hi?"}\n{"question": "Ho?"}\n')))
    assert [prompt.text for prompt in read("-")] == ["Hi?", "Ho?"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", " \n\n", "expected at least one prompt, found none."),
        ("p.jsonl", "", "expected at least one row, found an empty file."),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "p.jsonl:2: expected a JSON object, found broken JSON"),
        ("p.jsonl", '{"text": "a"}', "found keys ['text']; if it is under another name, say \"data.columns={prompt:"),
        ("p.jsonl", '{"prompt": ""}', "p.jsonl:1: expected a non-empty 'prompt'"),
        ("p.jsonl", '{"messages": [{"role": "system", "content": "a"}]}', "expected a turn to answer under 'messages'"),
        ("p.jsonl", '{"messages": [{"role": "robot", "content": "a"}]}', "expected a role of system, user"),
        ("p.txt", b"\xff\xfeH\0", "p.txt: expected UTF-8 text, found UTF-16"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused_with_its_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        read(tmp_path / name)
    assert words in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected a file, found nothing"):
        read(tmp_path / "none.txt")
    with pytest.raises(UserError, match="expected a file of prompts, found a folder"):
        read(tmp_path)


def test_the_system_prompt_and_worked_examples_stand_before_every_prompt(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(6)])
    settings = DataSettings(train=f"jsonl:{train}", system_prompt="Be short.", few_shot=2)
    (conversation,) = with_prompts_before([typed_prompt("Hi?", 1)], settings)
    assert [turn["role"] for turn in conversation] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert (conversation[0]["content"], conversation[-1]["content"]) == ("Be short.", "Hi?")
    assert with_prompts_before([typed_prompt("Hi?", 1)], DataSettings()) == [[USER]]


@pytest.mark.parametrize("form", ["preference", "prompts"])
def test_the_format_of_a_run_on_pairs_or_prompts_hinders_no_prompt(tmp_path, form):
    (prompt,) = read(write(tmp_path / "p.jsonl", [{"question": "Hi?", "answer": "Yes."}]), format=form)
    assert prompt.messages == [USER]
