"""The committed table of TrainingArguments is that of the installed version, whatever else is installed here."""

from __future__ import annotations

import json

import pytest
import transformers
from scripts import make_trainer_table as script

from stabledllm.config import trainer_table
from stabledllm.config.trainer_keys import OURS, REFUSED, TrainerSettings

STORED = json.loads(script.TABLE.read_text(encoding="utf-8"))
NOW = script.table()


def test_it_is_the_table_of_the_installed_version():
    if STORED["transformers"] != transformers.__version__:
        pytest.skip(f"made with transformers {STORED['transformers']}")
    for part in ("fields", "schedules", "reporters"):
        assert STORED[part] == NOW[part], "run scripts/make_trainer_table.py"


def test_optimizers_that_are_installed_use_what_it_says():
    assert list(STORED["optimizers"]) == list(NOW["optimizers"])
    for name, used in NOW["optimizers"].items():
        if used is not None and STORED["optimizers"][name] is not None:
            assert STORED["optimizers"][name] == used, name
    assert trainer_table.OPTIMIZERS["adamw_torch"] == ["adam_beta1", "adam_beta2", "adam_epsilon"]
    assert trainer_table.OPTIMIZERS["sgd"] == []


def test_every_field_of_it_is_placed():
    assert set(trainer_table.FIELDS) == {*TrainerSettings.model_fields, *OURS, *REFUSED}


def test_it_was_made_with_the_version_that_is_pinned():
    """So that an old table cannot hide behind the skip above where the pinned versions are tested."""
    pins = (script.TABLE.parents[3] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"transformers=={STORED['transformers']}" in pins, "run scripts/make_trainer_table.py"
