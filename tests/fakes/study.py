"""The smallest experiment: two methods, two seeds, three steps."""

from __future__ import annotations

from stabledllm.config.settings import ExperimentSettings

BASE = {
    "data": {"train": "synthetic:easy", "train_rows": 24, "validation_rows": 6, "test_rows": 2},
    "batch": 4,
    "steps": 3,
    "log_every": 1,
    "decoding": {"length": 8, "steps": 4, "block": 4},
}


def settings(out, **base) -> ExperimentSettings:
    """Settings of the experiment in ``out``, with some of every run's changed."""
    tree = {"base": BASE | base, "methods": ["standard", "mirror"], "seeds": [1, 2], "out": str(out)}
    return ExperimentSettings.model_validate(tree)


def quiet(_: str) -> None:
    pass
