"""Rows that belong together are never parted: those of a dialogue, of a table, of a picture, and alike ones."""

from __future__ import annotations

import json

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_bundle
from stabledllm.data.holding_out import groups_of, hold_out, whole_dialogues
from stabledllm.data.overlap import Others, without
from stabledllm.data.sources import load_examples
from stabledllm.errors import UserError
from tests.checks.data import TOKENIZER, example


def dialogue(name: str, turns: int) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": f"{name} {roles[i % 2]} {i}"} for i in range(2 * turns)]


def write(path, dialogues: list[list[dict]]):
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in dialogues))
    return f"jsonl:{path}"


def lines_of(rows) -> set[str]:
    return {row.origin for row in rows}


def test_a_dialogue_is_held_out_whole_and_so_is_one_that_continues_it(tmp_path):
    dialogues = [dialogue(f"d{i}", 1 + i % 4) for i in range(60)]
    dialogues += [dialogue(f"d{i}", 5) for i in range(0, 60, 7)]
    spec = write(tmp_path / "rows.jsonl", dialogues)
    data = load_bundle(DataSettings(train=spec, every_turn=True, validation_share=0.3), TOKENIZER)
    assert len(data.train) + len(data.validation) == sum(len(turns) // 2 for turns in dialogues)
    sides = [lines_of(data.train), lines_of(data.validation)]
    assert not sides[0] & sides[1], "no line is on both sides"
    for i in range(0, 60, 7):
        both = {f"{tmp_path}/rows.jsonl:{i + 1}", f"{tmp_path}/rows.jsonl:{61 + i // 7}"}
        assert both <= sides[0] or both <= sides[1], "what continues a dialogue goes with it"


def test_without_every_turn_a_question_within_another_conversation_goes_with_it(tmp_path):
    spec = write(tmp_path / "rows.jsonl", [dialogue(f"d{i % 30}", 1 + i // 30) for i in range(60)])
    examples = load_examples(spec, split="train", n=0, seed=0)
    groups = groups_of(examples)
    assert [groups[i] == groups[i + 30] for i in range(30)] == [True] * 30
    assert len(set(groups)) == 30


def test_a_row_by_itself_lies_where_it_lay_without_the_dialogues():
    """The split of rows that belong to none does not depend on what else is there."""
    alone = [example(f"question {i}", "a", f"f:{i}") for i in range(40)]
    told = [{"messages": dialogue("d", 3)[: 2 * n], "origin": "g:1", "dialogue": "g:1"} for n in (1, 2, 3)]
    held = {e["origin"] for e in hold_out(alone, 0.3, 1)[1]}
    assert {e["origin"] for e in hold_out([*told, *alone], 0.3, 1)[1]} - {"g:1"} == held


@pytest.mark.parametrize("key", ["table", "picture"])
def test_questions_on_one_table_and_captions_of_one_picture_go_together(key):
    rows = [
        {"caption": f"caption {i}", "origin": f"f:{i}", key: f"{i % 20}"}
        if key == "picture"
        else example(f"question {i}", "a", f"f:{i}") | {key: f"{i % 20}"}
        for i in range(80)
    ]
    for seed in range(3):
        train, held = hold_out(rows, 0.3, seed)
        assert not {e[key] for e in train} & {e[key] for e in held}


def test_limits_take_whole_dialogues(tmp_path):
    spec = write(tmp_path / "rows.jsonl", [dialogue(f"d{i}", 3) for i in range(20)])
    settings = DataSettings(train=spec, every_turn=True, validation_share=0.3, train_rows=10, validation_rows=4)
    data = load_bundle(settings, TOKENIZER)
    assert (len(data.train), len(data.validation)) == (9, 3)
    examples = load_examples(spec, split="train", n=0, seed=0, every_turn=True)
    assert [len(whole_dialogues(examples, n)) for n in (3, 5, 6, 60, 99)] == [3, 3, 6, 60, 60]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: expected at most 2 rows of one dialogue"):
        whole_dialogues(examples, 2)


def test_a_dialogue_with_a_tested_turn_is_dropped_whole_whichever_turn_it_is(tmp_path):
    train = [dialogue(f"d{i}", 3) for i in range(10)]
    test = [train[2][:2], train[4][:4], dialogue("d6", 5)]  # a first turn, a second one, and what goes on after all
    spec, tested = write(tmp_path / "train.jsonl", train), write(tmp_path / "test.jsonl", test)
    examples = load_examples(spec, split="train", n=0, seed=0, every_turn=True)
    kept, dropped = without(examples, Others(load_examples(tested, split="test", n=0, seed=0)))
    assert {int(e["origin"].rpartition(":")[2]) for e in kept} == {1, 2, 4, 6, 8, 9, 10}
    assert len(kept) == 21
    assert len(dropped) == 9


def test_rows_of_ids_without_a_prompt_are_questions_of_their_own(tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"input_ids": [65, 66, i], "prompt_length": 0}) + "\n" for i in range(40)))
    examples = load_examples(f"jsonl:{path}", split="train", n=0, seed=0)
    assert len(set(groups_of(examples))) == 40
    train, held = hold_out(examples, 0.2, 0)
    assert 0 < len(held) < len(train)
    assert not without(train, Others(held))[1]
