"""A Python file is a reward only where it was typed: a recipe that names one is refused, with what to type."""

from __future__ import annotations

import pytest

from stabledllm.config.recipe import load_recipe, read_recipe
from stabledllm.errors import Mistakes


def recipe(tmp_path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "place", "key"),
    [
        ("grpo:\n  reward: [task, evil.py:f]\n", "line 2", "grpo.reward"),
        ("grpo: {reward: [task, 'evil.py:f']}\n", "line 1", "grpo.reward"),
        ("grpo:\n  reward:\n  - task\n  - evil.py:f\n", "line 4", "grpo.reward"),
        ("methods: [standard]\nbase:\n  grpo:\n    reward: [evil.py:f]\n", "line 4", "base.grpo.reward"),
    ],
    ids=["list", "mapping", "lines", "experiment"],
)
def test_a_recipe_that_names_a_file_is_refused(tmp_path, text, place, key):
    with pytest.raises(Mistakes) as refused:
        load_recipe(recipe(tmp_path, text))
    assert f"key '{key}': expected a Python file, whose code is run, to be named on the command line" in str(
        refused.value
    )
    assert f"type {key}=[evil.py:f]." in str(refused.value)
    assert place in str(refused.value)


def test_a_parent_that_names_a_file_is_refused_too(tmp_path):
    (tmp_path / "parent.yaml").write_text("grpo:\n  reward: [evil.py:f]\n")
    assert "evil.py:f" in "".join(read_recipe(recipe(tmp_path, "extends: parent.yaml\n")).sentences)


@pytest.mark.parametrize("typed", ["grpo.reward=[mine.py:f]", "grpo.reward=[task, mine.py:f]"])
def test_what_is_typed_takes_the_place_of_the_recipes(tmp_path, typed):
    sentences = read_recipe(recipe(tmp_path, "grpo:\n  reward: [evil.py:f]\n"), [typed]).sentences
    assert not any("whose code is run" in sentence for sentence in sentences)
