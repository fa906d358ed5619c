"""Mistakes in published estimators that the comparison with their enumerated laws notices."""

from __future__ import annotations

import pytest

from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO
from stabledllm.likelihood.responses import Responses
from tests.likelihood.test_laws import check
from tests.mutation.inject import noticed, wrap

pytestmark = pytest.mark.long


def heavier(part: int, factor: float):
    """One of a draw's views with another weight."""

    def change(views, *_):
        return [(mask, weight * factor if i == part else weight) for i, (mask, weight) in enumerate(views)]

    return change


@pytest.mark.parametrize(
    ("preset", "case", "change"),
    [
        (ESPO, "espo", heavier(0, 3 / 4)),  # P in the place of P + 1, in one of the two
        (Coupled, "coupled", heavier(0, 2)),  # the value with everything masked without its half
        (OneStep, "one-step", lambda views, _, given: [(given.maskable, weight) for _, weight in views]),
        (UniGRPO, "unigrpo", lambda views, _, given: [(mask, 1.0) for mask, _ in views]),  # a sum, no mean
    ],
    ids=["espo", "coupled", "one-step", "unigrpo"],
)
def test_another_weight_or_mask_is_noticed(monkeypatch, preset, case, change):
    check(case, "log-ratio")
    wrap(monkeypatch, preset, "views", change)
    noticed(check, case, "log-ratio")


def test_masks_of_every_token_in_one_order_are_noticed(monkeypatch):
    """The law of the counts is right, but the tokens of all responses are masked in the same order."""
    wrap(monkeypatch, Responses, "uniforms", lambda found, *_: found[:1].expand_as(found))
    noticed(check, "espo", "gradient")
