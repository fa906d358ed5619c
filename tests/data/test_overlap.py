"""No question of one split stands in another, not even in other words' case or punctuation."""

import itertools

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_bundle
from stabledllm.data.holding_out import hold_out
from stabledllm.data.overlap import likeness
from stabledllm.data.sources import load_examples
from stabledllm.errors import UserError
from stabledllm.tasks.likeness import plain
from tests.checks.data import TOKENIZER, example
from tests.fakes.tasks import gsm8k_folder, gsm8k_row, openscience_row, question, write

NEAR = "  ANN has 105 dates, and gets 2 more -- how many ? "
"""Question 105 but for case, spacing and punctuation."""


def bundle(spec, **settings):
    told = []
    found = load_bundle(DataSettings(train=spec, **settings), TOKENIZER, told.append)
    assert told == found.notes
    return found


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        ("It costs $1,200.", "it costs $1200", True),
        ("Ann’s hat", "Ann's hat", True),
        ("a  b\nc", "A b C!", True),
        ("2.5 m", "25 m", False),
        ("7-5+3=?", "7+5-3=?", False),
        ("7-5", "7 5", False),
        ("1/2", "12", False),
        ("has 3", "has 4", False),
        ("3 %", "3", True),
        ("x < 3", "x > 3", False),
        ("a | b", "a b", False),
    ],
)
def test_what_is_alike(a, b, alike):
    assert (plain(a) == plain(b)) is alike


def test_no_two_problems_of_the_synthetic_task_are_alike():
    rows = load_examples("synthetic:1-6/50", split="train", n=500, seed=0)
    texts = {row["messages"][0]["content"] for row in rows}
    assert len({plain(text) for text in texts}) == len(texts)


def test_near_duplicates_of_test_rows_are_dropped_from_training_and_counted(tmp_path):
    train = [gsm8k_row(i) for i in range(40)]
    folder = gsm8k_folder(tmp_path, train=[*train, gsm8k_row(105, NEAR), gsm8k_row(103)])
    found = bundle(f"gsm8k:{folder}", validation_share=0.25)
    assert len(found.train) + len(found.validation) == 40
    origins = {row.origin.rpartition(":")[2] for row in (*found.train, *found.validation)}
    assert not origins & {"41", "42"}
    (note,) = [note for note in found.notes if "dropped 2 rows found in test" in note]
    assert "train.jsonl:41 like" in note
    assert "test.jsonl:6" in note


def test_the_same_rows_given_as_two_files_are_refused(tmp_path):
    folder = gsm8k_folder(tmp_path, test=[gsm8k_row(7), gsm8k_row(100)])
    both = {"test": f"gsm8k:{folder}/test.jsonl", "validation_share": 0.25}
    with pytest.raises(UserError, match=r"test\.jsonl:1: expected test rows that are not in the training data"):
        bundle(f"gsm8k:{folder}/train.jsonl", **both)
    write(folder / "test.jsonl", [gsm8k_row(7, question(7).upper()), gsm8k_row(100)])
    found = bundle(f"gsm8k:{folder}/train.jsonl", **both)
    assert len(found.train) + len(found.validation) == 39
    assert "dropped 1 row found in test" in found.notes[0]


def test_validation_and_test_are_kept_apart(tmp_path):
    folder = gsm8k_folder(tmp_path)
    write(folder / "held.jsonl", [gsm8k_row(i) for i in range(200, 206)] + [gsm8k_row(105, NEAR)])
    found = bundle(f"gsm8k:{folder}", validation=f"gsm8k:{folder}/held.jsonl")
    assert len(found.validation) == 6
    write(folder / "held.jsonl", [gsm8k_row(i) for i in range(200, 206)] + [gsm8k_row(105)])
    with_test = {"validation": f"gsm8k:{folder}/held.jsonl", "test": f"gsm8k:{folder}/test.jsonl"}
    with pytest.raises(UserError, match="expected test rows that are not in the validation data"):
        bundle(f"gsm8k:{folder}/train.jsonl", **with_test)


def test_near_duplicates_are_held_out_together_in_any_order():
    rows = [example(f"question {i}", "a", f"f:{i}") for i in range(80)]
    rows += [example(f"question {i} ?", "a", f"f:{i + 80}") for i in range(40, 80)]
    train, held = hold_out(rows, 0.3, 1)
    assert not {likeness(e) for e in train} & {likeness(e) for e in held}
    again = hold_out(rows[::-1], 0.3, 1)[1]
    assert {e["origin"] for e in held} == {e["origin"] for e in again}
    # A row without near-duplicates lies where it lies by itself.
    alone = {e["origin"] for e in hold_out(rows[:40], 0.3, 1)[1]}
    assert {e["origin"] for e in held if int(e["origin"][2:]) < 40} == alone


def test_openscience_parts_one_file_into_three(tmp_path):
    path = write(tmp_path / "rows.jsonl", [openscience_row(i) for i in range(200)])
    found = bundle(f"openscience:{path}", validation_share=0.2, test_rows=None)
    likes = [{row.origin for row in found.train}, {row.origin for row in found.validation}]
    likes.append({e["origin"] for e in found.test})
    assert all(not a & b for a, b in itertools.combinations(likes, 2))
    assert sum(map(len, likes)) == 200


def test_without_test_rows_the_others_are_the_same(tmp_path):
    path = write(tmp_path / "rows.jsonl", [openscience_row(i) for i in range(200)])
    none, some = (bundle(f"openscience:{path}", validation_share=0.2, test_rows=rows) for rows in (0, None))
    assert not none.test
    assert some.test
    for split in ("train", "validation"):
        assert [row.origin for row in getattr(none, split)] == [row.origin for row in getattr(some, split)]


def test_as_many_training_rows_as_wanted_are_left_after_the_hold_out(tmp_path):
    path = write(tmp_path / "rows.jsonl", [openscience_row(i) for i in range(900)])
    found = bundle(f"openscience:{path}", train_rows=300, test_rows=50)
    assert (len(found.train), len(found.test)) == (300, 50)


def test_test_rows_without_an_answer_are_counted(tmp_path):
    write(tmp_path / "train.jsonl", [openscience_row(i) for i in range(40)])
    write(tmp_path / "test.jsonl", [openscience_row(50), {"input": "q", "output": "no box"}, openscience_row(51)])
    found = bundle(f"openscience:{tmp_path}")
    assert len(found.test) == 2
    assert "test: dropped 1 without an answer" in found.notes[0]
    assert "test.jsonl:2" in found.notes[0]
