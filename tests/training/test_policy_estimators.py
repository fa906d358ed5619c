"""Policy gradients on published estimators: a step is the same however it is split, and the old policy shares it."""

from __future__ import annotations

import pytest

from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO
from stabledllm.policy.loss import GRPOLoss
from tests.training.test_policy import GROUP, logged, losses, run

HOW = {
    "espo": (ESPO(1, False, 60, strata=GROUP), "mean"),
    "coupled": (Coupled(1, True, 60), "token"),
    "coupled of responses": (Coupled(1, False, 60), "sequence"),
    "one-step": (OneStep(1, True, 60), "token"),
    "unigrpo": (UniGRPO(1, True, 60, inner=2), "token"),
}


@pytest.mark.parametrize("name", HOW)
def test_splitting_a_step_changes_nothing(tmp_path, name):
    how, ratio = HOW[name]
    loss = GRPOLoss(ratio, beta=0.1)
    whole = run(tmp_path / "whole", steps=2, how=how, loss=loss)
    split = run(tmp_path / "split", steps=2, how=how, loss=loss, micro=1, accumulation=4)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-9, abs=1e-12)
    first, second = logged(whole, "ratio/mean")
    assert first == pytest.approx(1.0, abs=1e-12)
    assert abs(second - 1.0) > 1e-6
    # Twice the policy in both steps, the old one in the second, the reference in both.
    views = {"espo": 2, "coupled": 3, "coupled of responses": 3}.get(name, 1)
    assert 0 < logged(whole, "forward_passes")[-1] <= (2 + 2 + 1 + 2) * 4 * GROUP * views
