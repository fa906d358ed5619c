"""The grid of learning rates of the study of objectives is in order, and wide and fine enough to tell ranges from."""

from __future__ import annotations

from itertools import pairwise

import pytest

from stabledllm.config import load_recipe
from stabledllm.experiment.planned import runs_of
from stabledllm.experiment.rate_checks import check_rates
from stabledllm.experiment.rate_range import LEAST_SEEDS
from tests.cli.runner import ROOT


def test_the_grid_spans_a_factor_of_16_around_the_usual_rate():
    settings = load_recipe(str(ROOT / "studies" / "objectives" / "recipes" / "rates.yaml"))
    check_rates(settings)
    rates = settings.learning_rates
    assert max(rates) / min(rates) == pytest.approx(16)
    assert all(high / low == pytest.approx(2**0.5, rel=0.01) for low, high in pairwise(rates))
    assert 2e-3 in rates
    assert settings.max_grad_norms == [1.0, 0.0]
    assert len(settings.seeds) >= LEAST_SEEDS
    assert len(runs_of(settings)) == len(settings.methods) * len(rates) * 2
    assert (settings.base.data.train_rows, settings.base.epochs, settings.base.steps) == (960, 5, None)
