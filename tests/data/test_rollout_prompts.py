"""Prompts to draw responses for: from any format, without their answers, with the columns that rewards get."""

from __future__ import annotations

import json

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import choose, load_bundle, load_rows
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer

ASK, REPLY = "Name a prime above 10.", "11 is one. #### 11"
TOKENIZER = ByteTokenizer()


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def settings(path, *rows: dict, **more) -> DataSettings:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSettings(**{"train": str(path), "format": "prompts", "validation_share": 0} | more)


def bundle(path, *rows: dict, **more):
    return load_bundle(settings(path, *rows, **more), TOKENIZER)


# name: (row, whether it has an answer, its gold as a reward sees it, conversational)
ROWS = {
    "a prompt alone": ({"prompt": ASK}, False, None, False),
    "with the right number": ({"prompt": ASK, "answer": 11}, False, 11, False),
    "with a gold": ({"prompt": ASK, "gold": "11", "answer": "12"}, False, "11", False),
    "with a response": ({"prompt": ASK, "completion": REPLY}, True, REPLY, False),
    "with a response and a gold": ({"prompt": ASK, "response": "Eleven.", "answer": "11"}, True, "11", False),
    "question and answer": ({"question": ASK, "answer": REPLY}, True, REPLY, False),
    "question and number": ({"question": ASK, "answer": 11}, False, 11, False),
    "instruction": ({"instruction": ASK, "output": REPLY}, True, REPLY, False),
    "instruction alone": ({"instruction": ASK, "answer": "11"}, False, "11", False),
    "messages": ({"messages": [turn("user", ASK), turn("assistant", REPLY)]}, True, REPLY, True),
    "messages that ask": ({"messages": [turn("user", ASK)], "gold": 11}, False, 11, True),
    "a prompt of messages": ({"prompt": [turn("user", ASK)]}, False, None, True),
    "conversations": ({"conversations": [{"from": "human", "value": ASK}]}, False, None, True),
    "an answer that is no number": ({"prompt": ASK, "answer": "Paris"}, False, None, False),
    "several right answers": ({"question": ASK, "answer": ["11", "eleven"]}, False, None, False),
    "preferences": ({"prompt": ASK, "chosen": "11", "rejected": "9"}, False, None, False),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_a_prompt_whatever_its_format(tmp_path, name):
    row, answered, gold, conversational = ROWS[name]
    data = bundle(tmp_path / "rows.jsonl", row | {"level": 3})
    (prompt,), (tokens,) = data.prompts["train"], data.train
    assert prompt.messages == [turn("user", ASK)]
    assert (prompt.task, prompt.gold) == (None if gold is None else "gsm8k", gold)
    assert prompt.conversational == conversational
    assert prompt.asked == ([turn("user", ASK)] if conversational else ASK)
    assert prompt.columns["level"] == 3
    assert not prompt.columns.keys() & {"prompt", "completion"}
    assert prompt.ids == TOKENIZER.chat(prompt.messages) == list(tokens.input_ids[: tokens.prompt_length])
    assert (tokens.response_length > 1) == answered
    assert prompt.origin == tokens.origin == f"{tmp_path / 'rows.jsonl'}:1"
    assert "11" not in TOKENIZER.decode(prompt.ids)


def test_all_prompts_have_the_same_columns(tmp_path):
    data = bundle(tmp_path / "rows.jsonl", {"prompt": "a?", "level": 3}, {"prompt": "b?", "test": "t"})
    assert [prompt.columns for prompt in data.prompts["train"]] == [
        {"level": 3, "test": None},
        {"level": None, "test": "t"},
    ]


def test_columns_are_renamed_and_told(tmp_path):
    rows = [{"problem": ASK, "solution": REPLY, "level": 1}]
    data = bundle(tmp_path / "rows.jsonl", *rows, columns={"prompt": "problem", "completion": "solution"})
    (prompt,) = data.prompts["train"]
    assert (prompt.asked, prompt.gold, prompt.columns) == (ASK, REPLY, {"level": 1})
    assert any("1 row as prompts" in note and "keys for rewards: level" in note for note in data.notes)


def test_names_that_rewards_are_given_are_no_columns(tmp_path):
    data = bundle(tmp_path / "rows.jsonl", {"prompt": ASK, "completions": ["a"], "log_metric": 1, "level": 2})
    assert data.prompts["train"][0].columns == {"level": 2}


def test_long_prompts_are_dropped_and_counted(tmp_path):
    rows = [{"prompt": "a?"}, {"prompt": "b" * 200}, {"prompt": "c?", "completion": "d" * 200}]
    data = bundle(tmp_path / "rows.jsonl", *rows, max_len=60)
    assert [prompt.asked for prompt in data.prompts["train"]] == ["a?"]
    assert len(data.train) == 1
    assert any("1 prompts; dropped 2 longer than max_len=60" in note for note in data.notes)
    with pytest.raises(UserError, match=r"rows.jsonl:2: expected at most max_len=60 tokens"):
        bundle(tmp_path / "rows.jsonl", *rows, max_len=60, over_length="refuse")
    with pytest.raises(UserError, match="at least one row of at most max_len=30"):
        bundle(tmp_path / "rows.jsonl", rows[1], max_len=30)


def test_held_out_prompts_without_answers_have_no_rows(tmp_path):
    rows = [{"prompt": f"{i}+{i}?", "gold": 2 * i} for i in range(40)]
    data = bundle(tmp_path / "rows.jsonl", *rows, validation_share=0.3)
    assert len(data.validation) == 0 < len(data.prompts["validation"])
    assert "without a response in the data, so that no NLL is measured" in data.notes[-1]
    assert "NLL" not in data.notes[-2]
    assert [e["origin"] for e in data.test] == [prompt.origin for prompt in data.prompts["validation"]]
    few = bundle(tmp_path / "rows.jsonl", *rows, validation_share=0.3, test_rows=2)
    assert few.test == data.test[:2]
    assert "test: 2 of the validation prompts, whose answers are known, are completed and scored" in few.notes
    assert not bundle(tmp_path / "rows.jsonl", *({"prompt": r["prompt"]} for r in rows), validation_share=0.3).test
    assert len(data.train) == len(data.prompts["train"]) == 40 - len(data.prompts["validation"])
    answered = [row | {"completion": f"#### {row['gold']}"} for row in rows]
    data = bundle(tmp_path / "rows.jsonl", *answered, validation_share=0.3)
    assert [p.origin for p in data.prompts["validation"]] == [row.origin for row in data.validation]


def test_a_task_gives_prompts_with_its_answers():
    task = DataSettings(train="synthetic:easy", format="prompts", train_rows=5, validation_rows=3, test_rows=2)
    data = load_bundle(task, TOKENIZER)
    assert [len(data.prompts[split]) for split in ("train", "validation")] == [5, 3]
    for prompt, row in zip(data.prompts["train"], data.train, strict=True):
        assert prompt.task == "synthetic"
        assert prompt.columns == {"answer": prompt.gold, "gold": prompt.gold, "task": "synthetic"}
        assert prompt.ids == list(row.input_ids[: row.prompt_length])
    assert len(data.test) == 2


def test_a_system_prompt_and_worked_examples_stand_before(tmp_path):
    task = DataSettings(
        train="synthetic:easy", format="prompts", train_rows=3, validation_rows=2, test_rows=2, few_shot=1,
        system_prompt="Think.",
    )  # fmt: skip
    prompt = load_bundle(task, TOKENIZER).prompts["train"][0]
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.asked == prompt.messages[-1]["content"]
    alone = load_bundle(settings(tmp_path / "rows.jsonl", {"prompt": ASK}, system_prompt="Think."), TOKENIZER)
    assert alone.prompts["train"][0].messages == [turn("system", "Think."), turn("user", ASK)]


def test_the_right_answer_is_that_of_the_last_turn(tmp_path):
    turns = [turn("user", "1+1?"), turn("assistant", "2"), turn("user", "2+2?"), turn("assistant", "4")]
    data = bundle(tmp_path / "rows.jsonl", {"messages": turns, "gold": 4}, every_turn=True)
    assert [(prompt.messages[-1]["content"], prompt.gold) for prompt in data.prompts["train"]] == [
        ("1+1?", "2"),
        ("2+2?", 4),
    ]


def test_what_rewards_see_is_part_of_the_contents_digest(tmp_path):
    digests = [
        choose(settings(tmp_path / "rows.jsonl", {"prompt": ASK, "level": level})).digests["train"] for level in (1, 2)
    ]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "A document."}, "rows.jsonl:1: expected a prompt under messages"),
        ({"prompt": "  "}, "rows.jsonl:1: expected a non-empty 'prompt'"),
        ({"prompt": 3}, "rows.jsonl:1: expected text under 'prompt', found int"),
        ({"prompt": [turn("system", "Be kind.")]}, "rows.jsonl:1: expected a turn to answer at the end of 'prompt'"),
        ({"prompt": [turn("user", ASK), turn("assistant", "It")]}, "found one of the assistant's."),
        ({"messages": []}, "rows.jsonl:1: expected a turn to answer under 'messages'"),
        ({"prompt": ASK, "completion": ""}, "rows.jsonl:1: expected a non-empty 'completion'"),
        ({"input_ids": [1, 2], "prompt_length": 1}, "rows.jsonl:1: expected a prompt under messages"),
    ],
    ids=["text", "blank", "number", "system alone", "half an answer", "no turns", "empty answer", "ids"],
)
def test_a_row_without_a_prompt_is_named(tmp_path, row, words):
    with pytest.raises(UserError) as refused:
        bundle(tmp_path / "rows.jsonl", row)
    assert words in str(refused.value)


def test_prompts_alone_are_no_rows_to_train_on(tmp_path):
    data = settings(tmp_path / "rows.jsonl", {"prompt": ASK})
    with pytest.raises(UserError, match=r"rows.jsonl:1: expected a row with an answer, found a prompt alone"):
        load_rows(data.train, TOKENIZER, data, "train", None)


def test_other_keys_are_made_json(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import datetime

    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.Table.from_pylist([{"prompt": ASK, "day": datetime.date(2026, 1, 2)}])
    parquet.write_table(table, path)
    data = load_bundle(DataSettings(train=str(path), format="prompts", validation_share=0), TOKENIZER)
    assert data.prompts["train"][0].columns == {"day": "2026-01-02"}
