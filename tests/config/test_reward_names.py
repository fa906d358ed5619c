"""A Python file is a reward only where it was typed: a recipe that names one is refused, with what to type."""

from __future__ import annotations

import pytest

from stabledllm.config.recipe import load_recipe, read_recipe
from stabledllm.config.reward_names import check_reward_files
from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.errors import Mistakes


def recipe(tmp_path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "place", "typed"),
    [
        ("grpo:\n  reward: [task, evil.py:f]\n", "line 2", "grpo.reward=[task,evil.py:f]"),
        ("grpo: {reward: [task, 'evil.py:f']}\n", "line 1", "grpo.reward=[task,evil.py:f]"),
        ("grpo:\n  reward:\n  - task\n  - evil.py:f\n", "line 4", "grpo.reward=[task,evil.py:f]"),
        ("methods: [standard]\nbase:\n  grpo:\n    reward: [evil.py:f]\n", "line 4", "base.grpo.reward=[evil.py:f]"),
    ],
    ids=["list", "mapping", "lines", "experiment"],
)
def test_a_recipe_that_names_a_file_is_refused(tmp_path, text, place, typed):
    with pytest.raises(Mistakes) as refused:
        load_recipe(recipe(tmp_path, text))
    key = typed.partition("=")[0]
    assert f"key '{key}': expected a Python file, whose code is run, to be named on the command line" in str(
        refused.value
    )
    assert f'type "{typed}".' in str(refused.value)
    assert place in str(refused.value)


def test_a_parent_that_names_a_file_is_refused_too(tmp_path):
    (tmp_path / "parent.yaml").write_text("grpo:\n  reward: [evil.py:f]\n")
    assert "evil.py:f" in "".join(read_recipe(recipe(tmp_path, "extends: parent.yaml\n")).sentences)


@pytest.mark.parametrize("typed", ["grpo.reward=[mine.py:f]", "grpo.reward=[task, mine.py:f]"])
def test_what_is_typed_takes_the_place_of_the_recipes(tmp_path, typed):
    sentences = read_recipe(recipe(tmp_path, "grpo:\n  reward: [evil.py:f]\n"), [typed]).sentences
    assert not any("whose code is run" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    "source",
    [
        b"\xef\xbb\xbfdef f(**_):\n    return []\n",
        "# -*- coding: latin-1 -*-\ndef f(**_):\n    return '\u00e9'\n".encode("latin-1"),
        b"from elsewhere import *\n",
    ],
    ids=["byte order mark", "encoding", "names of another module"],
)
def test_what_python_imports_is_no_other_text(tmp_path, source):
    (tmp_path / "mine.py").write_bytes(source)
    check_reward_files(GRPOSettings(reward=[f"{tmp_path / 'mine.py'}:f"]))
