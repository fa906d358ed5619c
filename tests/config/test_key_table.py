"""The table of keys has every key of the settings, with its default, its meaning and what it takes."""

from __future__ import annotations

import pytest

from stabledllm.config import settings
from stabledllm.config.key_table import keys_of
from stabledllm.config.settings import DecomposeSettings, EvalSettings, ExperimentSettings, TrainSettings

KINDS = (TrainSettings, ExperimentSettings, DecomposeSettings, EvalSettings, settings.GenerateSettings)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_there_with_its_meaning(kind):
    keys = keys_of(kind)
    assert set(kind.model_fields) <= set(keys)
    below = [key for key in keys.values() if key.group and "trainer." not in key.name]
    assert all(key.meaning for key in below if not key.is_group), "a key without a docstring"
    assert all(key.takes for key in keys.values())


def test_defaults_are_those_of_the_settings():
    whole, absent = TrainSettings().model_dump(), ("lora", "trainer", "block_schedule")
    for key in keys_of(TrainSettings).values():
        follow = [f"{group}.{name}" for group in ("decoding", "grpo.rollout") for name in ("steps", "block")]
        if key.is_group or key.group in absent or key.name in follow:
            continue  # a group that is left out has no values, and these follow from the length
        value = whole
        for part in key.name.split("."):
            value = value[part]
        assert key.default == value, key.name
    assert keys_of(DecomposeSettings)["probe.rows"].default == DecomposeSettings().probe.rows == 24
    assert keys_of(TrainSettings)["ppots.rows"].default == 112


@pytest.mark.parametrize(
    ("name", "takes", "default"),
    [
        ("batch", "N", "32"),
        ("packing", "true|false", "false"),
        ("dtype", "float32|bfloat16", "float32"),
        ("views_per_forward", "N|auto", ""),
        ("callbacks", "A,B,...", ""),
        ("data.columns", "{...}", ""),
        ("data.format", "NAME", ""),
        ("trainer.learning_rate", "N", "5e-05"),
        ("out", "TEXT", "runs/train"),
    ],
)
def test_what_a_key_takes(name, takes, default):
    key = keys_of(TrainSettings)[name]
    assert (key.takes, key.shown_default) == (takes, default)
