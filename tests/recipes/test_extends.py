"""Recipes that build on others: what wins, and what is refused."""

from __future__ import annotations

import pytest

from stabledllm.config import load_recipe
from stabledllm.config.recipe import merge, resolve
from stabledllm.errors import UserError


@pytest.fixture
def write(tmp_path):
    def one(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return one


def test_the_later_wins_key_by_key(write):
    write("a.yaml", "batch: 8\ntrainer: {learning_rate: 1.0e-3, weight_decay: 0.5}\ndata: {delimiters: [x, y]}")
    write("sub/b.yaml", "batch: 4\ntrainer: {weight_decay: 0.25}\ndata: {delimiters: [z]}")
    child = write("child.yaml", "extends: [a.yaml, sub/b.yaml]\nsteps: 3\ntrainer: {max_grad_norm: 2.0}")
    assert resolve(child) == {
        "batch": 4,
        "steps": 3,
        "trainer": {"learning_rate": 1e-3, "weight_decay": 0.25, "max_grad_norm": 2.0},
        "data": {"delimiters": ["z"]},
    }
    settings = load_recipe(child, ["trainer.weight_decay=0", "batch=2"])
    assert settings.batch == 2
    assert settings.trainer == {"learning_rate": 1e-3, "weight_decay": 0, "max_grad_norm": 2.0}


def test_grandparents_are_looked_up_beside_the_file_that_names_them(write):
    write("deep/c.yaml", "seed: 5")
    write("deep/b.yaml", "extends: c.yaml\nbatch: 3")
    child = write("a.yaml", "extends: deep/b.yaml")
    assert resolve(child) == {"seed": 5, "batch": 3}


def test_a_shipped_parent_and_null_over_a_mapping(write):
    child = write("mine.yaml", "extends: [sft-synthetic, lora]\nlora: null\nsteps: 7")
    settings = load_recipe(child)
    assert settings.model == "tiny"
    assert settings.lora is None
    assert settings.steps == 7
    assert settings.trainer["learning_rate"] == 2e-4, "of the part, over sft-synthetic's"


def test_parts_are_laid_over_with_a_plus(write):
    settings = load_recipe("gsm8k/llada-8b+lora")
    assert settings.lora.rank == 64
    assert settings.trainer["learning_rate"] == 2e-4
    assert settings.trainer["weight_decay"] == 0.1
    mine = write("mine+odd.yaml", "batch: 3")
    assert load_recipe(mine).batch == 3, "a file with a plus in its name is a file"
    assert load_recipe(f"sft-synthetic+{write('b.yaml', 'batch: 9')}").batch == 9


def test_the_base_of_an_experiment_may_extend(write):
    child = write("e.yaml", "base: {extends: sft-synthetic, steps: 2}\nmethods: [standard]\nseeds: [1]")
    settings = load_recipe(child, ["base.batch=6"])
    assert settings.base.data.train == "synthetic:hard"
    assert (settings.base.steps, settings.base.batch, settings.seeds) == (2, 6, [1])


def test_merge_replaces_what_is_not_a_mapping_on_both_sides():
    assert merge({"a": {"b": 1}, "c": 2}, {"a": 3, "c": {"d": 4}}) == {"a": 3, "c": {"d": 4}}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.yaml": "extends: b.yaml", "b.yaml": "extends: a.yaml"}, ["circle", "a.yaml -> ", "b.yaml -> "]),
        ({"a.yaml": "extends: a.yaml"}, ["circle"]),
        ({"a.yaml": "extends: [sft-synthetc]"}, ["a.yaml", "extends", "did you mean 'sft-synthetic'"]),
        ({"a.yaml": "extends: {b: 1}"}, ["a.yaml", "expected a name or a list of names", "{'b': 1}"]),
        ({"a.yaml": "extends: [1]"}, ["expected a name or a list of names"]),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "- 1"}, ["b.yaml", "expected keys and values, found list"]),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "x: ["}, ["b.yaml", "expected YAML"]),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "btach: 1"}, ["unknown key 'btach'", "did you mean 'batch'"]),
        ({"a.yaml": "base: {extends: nowhere}\nmethods: [standard]"}, ["nowhere", "found neither"]),
    ],
)
def test_refusals(write, files, words):
    for name, text in files.items():
        path = write(name, text)
    with pytest.raises(UserError) as refused:
        load_recipe(path if len(files) == 1 else path.replace("b.yaml", "a.yaml"))
    for word in words:
        assert word in str(refused.value), refused.value
    assert "\n" not in str(refused.value)


def test_two_children_of_one_parent_are_no_circle(write):
    write("top.yaml", "batch: 2")
    write("l.yaml", "extends: top.yaml\nseed: 1")
    write("r.yaml", "extends: top.yaml\nsteps: 1")
    assert resolve(write("d.yaml", "extends: [l.yaml, r.yaml]")) == {"batch": 2, "seed": 1, "steps": 1}
