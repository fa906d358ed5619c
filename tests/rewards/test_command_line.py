"""Rewards as users name them: in a recipe, on the command line, in the page's own example."""

from __future__ import annotations

import json
import re

import pytest

from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.rewards.named import build_rewards
from tests.cli.runner import ROOT, assert_refused, in_process

PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{i}?", "gold": i}) + "\n" for i in range(20)))
    (tmp_path / "mine.py").write_text(
        "open('ran.txt', 'w')\ndef one(completions):\n    return [1.0] * len(completions)\n"
    )
    (tmp_path / "rows.jsonl.py").write_text("def f(:\n")
    (tmp_path / "mine.yaml").write_text("extends: grpo\ngrpo:\n  reward: [mine.py:one]\n")
    return tmp_path


GIVEN = ("model=tiny", "data.train=rows.jsonl", "batch=2")


@pytest.mark.parametrize("command", ["train", "validate"])
def test_a_recipe_runs_no_code_that_nobody_typed(folder, command):
    result = in_process(command, "mine.yaml", *GIVEN, cwd=folder)
    assert_refused(result, "recipe 'mine.yaml', line 3: key 'grpo.reward'", 'type "grpo.reward=[mine.py:one]".')
    assert not (folder / "ran.txt").exists()


@pytest.mark.parametrize("typed", [("grpo.reward=[mine.py:one]",), ("--grpo.reward", "[mine.py:one]")], ids=len)
def test_what_is_typed_is_taken(folder, typed):
    result = in_process("validate", "mine.yaml", *GIVEN, *typed, cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert not (folder / "ran.txt").exists(), "its names alone are looked at"
    assert in_process("train", "mine.yaml", *GIVEN, *typed, "--dry-run", cwd=folder).returncode == 0
    assert (folder / "ran.txt").exists()


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("[gone.py:one]", "found no file 'gone.py'"),
        ("[mine.py:two]", "expected a function 'two' in mine.py, found none"),
        ("[rows.jsonl.py:f]", "expected Python in 'rows.jsonl.py', found other text, line 1"),
        ("[mine.py]", "write FILE.py:FUNCTION"),
        ("[task,task]", "expected each reward once, found 'task' twice"),
    ],
)
def test_a_reward_that_cannot_be_is_refused_before_anything_is_loaded(folder, reward, words):
    result = in_process("validate", "grpo", *GIVEN, f"grpo.reward={reward}", cwd=folder)
    assert_refused(result, "key 'grpo.reward'", words)


def test_the_pages_function_does_what_it_says():
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    namespace: dict = {}
    exec(source, namespace)
    rewards = build_rewards(GRPOSettings(), [namespace["short_and_right"]])
    prompts = [RolloutPrompt([1], [{"role": "user", "content": "?"}], "x:1", {"answer": a}) for a in ("4", "4", None)]
    assert rewards.score(prompts, ["It is 4", "5", "6"], [[], [], []]).total == [1.0 - 0.03, -0.01, None]
