"""Rows of reasoning-gym: the same every time, no item in two splits, and of gsm_symbolic no template."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import choose
from stabledllm.errors import UserError
from stabledllm.tasks import numbers, scoring
from stabledllm.tasks.gym import drawing, gsm_symbolic, task
from stabledllm.tasks.gym.spec import _BY_HASH, parse
from stabledllm.tasks.task import TaskOptions

gym = pytest.importorskip("reasoning_gym", reason="the package reasoning-gym is not installed")
SPLITS = ("train", "validation", "test")
TASK = task.TASK


def load(where: str, split: str, rows: int | None = None, seed: int = 0) -> list[dict]:
    return TASK.load(where, split, TaskOptions(rows=rows, seed=seed))


def questions(rows: list[dict]) -> set[str]:
    return {row["messages"][0]["content"] for row in rows}


def templates(rows: list[dict]) -> set[int]:
    return {int(re.search(r"template (\d+)\)$", row["origin"])[1]) for row in rows}


@pytest.mark.parametrize("where", ["chain_sum,min_terms=2", "gsm_symbolic", "rectangle_count"])
def test_the_same_rows_every_time_and_however_many(where):
    twenty = load(where, "test", 20)
    drawing._chunk.cache_clear()
    assert load(where, "test", 12) == twenty[:12]
    assert load(where, "test", 20, seed=1) != twenty
    assert [row["messages"] for row in load(f"{where},seed=1", "test", 20)] == [
        row["messages"] for row in load(where, "test", 20, seed=1)
    ], "the key is data.seed"


@pytest.mark.parametrize("where", ["chain_sum,max_terms=2,max_digits=2", "coin_flip", "gsm_symbolic"])
def test_no_question_is_in_two_splits_whatever_the_seeds(where):
    of = {split: [load(where, split, 40, seed) for seed in range(6)] for split in SPLITS}
    for rows in of.values():
        assert all(len(questions(each)) == len(each) > 30 for each in rows), "and none twice in a split"
    together = {split: set.union(*map(questions, rows)) for split, rows in of.items()}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not together[a] & together[b]


def test_seeds_share_no_shifted_items():
    first, second = (questions(load("chain_sum", "train", 300, seed)) for seed in (0, 1))
    assert len(first & second) == 0


def test_gsm_symbolic_holds_out_templates():
    of = {
        split: set.union(*(templates(load("gsm_symbolic", split, 300, seed)) for seed in range(4))) for split in SPLITS
    }
    assert {split: len(found) for split, found in of.items()} == {"train": 57, "validation": 8, "test": 20}
    assert not of["train"] & of["test"]
    assert not of["train"] & of["validation"]
    assert not of["validation"] & of["test"]


def test_a_template_is_the_function_that_made_the_item():
    from random import Random

    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset, GSMSymbolicDatasetConfig

    spec = parse("gsm_symbolic")
    chunk = drawing._chunk(spec.text, 3 * drawing._SPREAD)
    made = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1)).generators
    for place in range(0, 250, 7):
        item = chunk.item(place)
        number = int(item["template"].rpartition(" ")[2])
        again = made[number](Random(3 * drawing._SPREAD + place), 1.0)
        assert item["question"].startswith(again["question"])


def test_responses_of_gsm_symbolic_are_worked_or_bare():
    worked, bare = load("gsm_symbolic", "train", 60), load("gsm_symbolic,response=answer", "train", 60)
    for with_steps, alone in zip(worked, bare, strict=True):
        assert with_steps["messages"][0] == alone["messages"][0]
        assert re.search(r"\n#### \S+$", with_steps["messages"][1]["content"])
        assert numbers.value(alone["messages"][1]["content"]) is not None
        for row in (with_steps, alone):
            assert TASK.score(row["messages"][1]["content"], row["gold"]).correct is True


def test_a_wrong_worked_solution_is_dropped_and_counted(monkeypatch):
    told, right = [], gsm_symbolic.response_of
    spoilt = load("gsm_symbolic", "train", 30)[4]["messages"][0]["content"]

    def spoil(item: dict, form: str) -> str | None:
        worked = item["metadata"]["answer_cot"] + ("1" if item["question"] == spoilt else "")
        return right(item | {"metadata": item["metadata"] | {"answer_cot": worked}}, form)

    monkeypatch.setattr(gsm_symbolic, "response_of", spoil)
    rows = TASK.load("gsm_symbolic", "train", TaskOptions(rows=30, note=told.append))
    assert len(rows) == 29
    assert spoilt not in questions(rows)
    assert told == ["train: dropped 1 of 30 whose worked solution does not end in its answer"]


def test_worked_solutions_end_in_their_answers_in_every_template():
    from random import Random

    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
        GSMSymbolicDataset,
        GSMSymbolicDatasetConfig,
        tasks_ok,
    )

    made = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1)).generators
    for number in tasks_ok:
        for seed in range(5):
            item = made[number](Random(seed), 1.0)
            ends = scoring.parse_answer(item["metadata"]["answer_cot"])
            assert numbers.same(ends, scoring.parse_gold(item["answer"])), number


def test_boards_that_differ_in_punctuation_alone_are_different_rows():
    chosen = choose(DataSettings(train="reasoning-gym:n_queens", train_rows=40, validation_rows=10, test_rows=10))
    assert [len(chosen.splits[split]) for split in SPLITS] == [40, 10, 10]
    assert not chosen.notes


def test_size_and_the_settings_limit_rows():
    assert len(load("chain_sum,size=7", "train")) == 7
    assert len(load("chain_sum,size=7", "train", 20)) == 7
    assert len(load("chain_sum,size=7", "train", 5)) == 5
    assert len(load("chain_sum", "train")) == 500


def test_keys_reach_the_set():
    assert all(re.search(r"\d \+ \d =$|\d - \d =$", q) for q in questions(load(
        "chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1,size=9", "train"
    )))  # fmt: skip
    assert all("*" not in q and " - " not in q for q in questions(load(
        "basic_arithmetic,operators=[+],allow_negation=false,size=9", "train"
    )))  # fmt: skip


@pytest.mark.parametrize("name", ["graph_color", "propositional_logic", "rubiks_cube", "arc_agi", "puzzle24"])
def test_a_response_is_right_by_the_sets_own_scorer(name):
    for row in load(name, "train", 3):
        score = TASK.score(row["messages"][1]["content"], row["gold"])
        assert (score.correct, score.credit) == (True, 1.0)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "found no name; for instance reasoning-gym:chain_sum"),
        ("chain_sm", r"found no set called 'chain_sm' \(did you mean 'chain_sum'\?\)"),
        ("composite", "expected one set, found a mixture"),
        ("boxnet", "'boxnet' only judges answers"),
        ("chain_sum,min_term=2", r"a key of 'chain_sum', found 'min_term' \(did you mean 'min_terms'\?\)"),
        ("chain_sum,response=worked", "a key of 'chain_sum', found 'response'"),
        ("chain_sum,min_terms", "expected key=value behind the set's name, found 'min_terms'"),
        ("chain_sum,size=3,size=4", "expected every key once, found 'size' twice"),
        ("chain_sum,min_terms=two", "for 'min_terms', found 'two'"),
        ("chain_sum,min_terms=9", "values that 'chain_sum' takes, found: max_terms must be >= min_terms"),
        ("chain_sum,size=0", r"expected size in \[1, 131072\], found 0"),
        ("chain_sum,seed=4096", r"expected seed in \[0, 4095\], found 4096"),
        ("gsm_symbolic,difficulty=2", "values that 'gsm_symbolic' takes"),
        ("gsm_symbolic,response=long", "expected 'worked' or 'answer' for 'response', found 'long'"),
        ("arc_agi,board_format_opts=3", "for 'board_format_opts', found '3'"),
    ],
)
def test_refusals(where, words):
    with pytest.raises(UserError, match=words) as refused:
        TASK.check(where)
    assert re.fullmatch(r"(data ')?reasoning-gym:[^\n]*\.", str(refused.value))


def test_a_set_with_fewer_different_items_gives_them_all_and_says_so():
    told = []
    rows = TASK.load("coin_flip,min_trials=3,max_trials=4", "test", TaskOptions(rows=90, note=told.append))
    assert len(questions(rows)) == len(rows) < 10
    spec = "reasoning-gym:coin_flip,min_trials=3,max_trials=4"
    assert told == [f"test: found no more than {len(rows)} different items of {spec}"]


def test_a_set_without_items_of_a_split_is_refused():
    two_items = "coin_flip,min_trials=1,max_trials=1,allow_at_least=false"
    with pytest.raises(UserError, match=r"expected \w+ items, found none among the first \d+ that are drawn"):
        [load(two_items, split) for split in SPLITS]


def test_a_seed_of_the_settings_beyond_the_limit():
    with pytest.raises(UserError, match=r"found data\.seed=5000"):
        load("chain_sum", "train", 3, seed=5000)


def test_sets_whose_items_depend_on_the_hash_seed_want_one(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(UserError, match="expected the environment variable PYTHONHASHSEED=0"):
        TASK.check("word_ladder")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    TASK.check("word_ladder,size=2")


_DIGESTS = """
import hashlib, reasoning_gym
from stabledllm.tasks.gym.package import quiet
for name in sorted(reasoning_gym.factory.DATASETS):
    if name in ("composite", "futoshiki", "sokoban", "puzzle24", "zebra_puzzles"):  # slow; they draw from no set
        continue
    with quiet():
        made = reasoning_gym.create_dataset(name, seed=5 << 20, size=256)
        items = [made[place] for place in range(4)]
    text = repr([(item["question"], item["answer"]) for item in items])
    print(name, hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.mark.processes
@pytest.mark.slow
def test_no_other_set_depends_on_the_hash_seed():
    found = []
    for seed in "12":
        done = subprocess.run(
            [sys.executable, "-c", _DIGESTS], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True, timeout=200,
        )  # fmt: skip
        found.append(dict(line.split() for line in done.stdout.splitlines()))
    assert len(found[0]) > 90
    assert {name for name in found[0] if found[0][name] != found[1][name]} <= set(_BY_HASH)
