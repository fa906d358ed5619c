"""docs/trl.md: both scripts run as they stand, from nothing but the installed packages."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("trl", reason="the package trl is not installed")

from tests.cli.runner import ROOT

PAGE = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in PYTHON:
            exec(block, names)
    return names


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_preferences_are_learnt(page):
    losses = logged(page["preferences"], "loss")
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert logged(page["preferences"], "eval_rewards/accuracies")


def test_rewards_are_given(page):
    assert len(logged(page["rewarded"], "loss")) == 4
    assert 0 < max(logged(page["rewarded"], "reward")) <= 1


def test_every_block_of_the_page_is_run():
    assert len(PYTHON) == 2
    assert PAGE.count("```") == 2 * (len(PYTHON) + 1)
