"""The page on policy gradients: its keys, defaults and names are those of the code, its commands are in order."""

from __future__ import annotations

import re
import shlex

import pytest

from stabledllm.config import load_recipe
from stabledllm.config.settings import GRPOSettings
from stabledllm.training.history import LOGGED
from tests.cli.runner import ROOT

PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `grpo.")]
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_every_key_stands_on_the_page():
    named = {key for row in ROWS for key in re.findall(r"`grpo\.([a-z_]+)`", row[0])}
    elsewhere = {"reward", "reward_weights"}  # docs/rewards.md
    assert named == GRPOSettings.model_fields.keys() - elsewhere


def test_the_defaults_are_those_of_the_code():
    for row in ROWS:
        if number := re.match(r"([\d.]+);", row[1]):
            (key, *_) = re.findall(r"`grpo\.([a-z_]+)`", row[0])
            assert getattr(GRPOSettings(), key) == float(number[1]), key


def test_what_is_logged_is_named_as_it_is():
    logged = re.search(r"\*\*What is logged\*\*.*?the screen: (.*?)rows that decoding", PAGE, re.DOTALL)[1]
    names = set(re.findall(r"`([a-z_/]+)`", logged))
    assert {"reward", "kl", "rollout_forward_rows"} <= names <= set(LOGGED)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "train" in line or "experiment" in line])
def test_its_commands_are_in_order(line):
    _, command, recipe, *words = shlex.split(line)
    settings = load_recipe(recipe, words)
    assert (command == "experiment") == hasattr(settings, "methods")
