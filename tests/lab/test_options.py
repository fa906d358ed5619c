"""The plain options of measurements are those of the settings: names, defaults and bounds."""

from __future__ import annotations

from dataclasses import fields

import pytest

from stabledllm.config.settings import DecomposeSettings, GradientSettings, PPOTSSettings
from stabledllm.errors import UserError
from stabledllm.lab.from_settings import build_measuring, build_probing
from stabledllm.lab.measure.options import DEFAULT_METHODS, DecomposeOptions, GradientOptions, ProbeOptions

PAIRS = [(ProbeOptions, PPOTSSettings), (GradientOptions, GradientSettings), (DecomposeOptions, DecomposeSettings)]


def test_defaults_are_those_of_the_settings():
    assert build_probing(PPOTSSettings()) == ProbeOptions()
    assert build_measuring(DecomposeSettings()) == DecomposeOptions()
    assert DecomposeSettings().methods == list(DEFAULT_METHODS)
    assert {one.name for one in fields(ProbeOptions)} == set(PPOTSSettings.model_fields)
    assert {one.name for one in fields(GradientOptions)} == set(GradientSettings.model_fields)


def taken(kind: type, name: str, value: object) -> bool:
    try:
        kind(**{name: value})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("plain", "settings"), PAIRS, ids=lambda kind: kind.__name__)
def test_bounds_are_those_of_the_settings(plain, settings):
    values = (-1, 0, 1, 2, 3, 4, 0.5, 1.0, 1_000_000, 1_000_001, 2**32, "cells", "iid", "epr", "sketch", "cell")
    tried = [(one.name, value) for one in fields(plain) if one.metadata for value in values]
    assert len(tried) > 50
    for name, value in tried:
        # The settings read 1.0 as 1; a caller of Python means what he writes.
        if (
            isinstance(value, float)
            and value == int(value)
            and isinstance(plain.__dataclass_fields__[name].default, int)
        ):
            continue
        assert taken(plain, name, value) == taken(settings, name, value), (name, value)


def test_a_wrong_value_is_refused_by_its_key():
    with pytest.raises(UserError, match=r"grad.rows: expected a whole number from 4 to 1000000, found True"):
        GradientOptions(rows=True)
    with pytest.raises(UserError, match="family: expected one of epr, tabulated, found 'ep'"):
        ProbeOptions(family="ep")
    with pytest.raises(UserError, match=r"grad.split_rows: expected a whole number from 4 to 1000000, found 3"):
        GradientOptions(split_rows=3)
    assert GradientOptions(split_rows=0).split_rows == 0
    with pytest.raises(ValueError, match="expected 0, or at least 4 for an error, found 3"):
        GradientSettings(split_rows=3)
