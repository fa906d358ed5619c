"""The estimators that the settings name: built from them, with the published ratio, and refused in one sentence."""

import pytest

from stabledllm import UserError
from stabledllm.config.settings.policy import FORWARDS, GRPOSettings
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.named import PRESETS, estimator_of
from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO


def test_every_named_estimator_is_built():
    named = set(GRPOSettings.model_fields["estimator"].annotation.__args__)
    assert named == set(FORWARDS) == {"method", *PRESETS}


@pytest.mark.parametrize(("ratio", "of_tokens"), [(None, False), ("token", True), ("sequence", False)])
def test_the_ratio_decides_on_values_of_tokens(ratio, of_tokens):
    how = estimator_of(GRPOSettings(budget=4, ratio=ratio, tokens_per_forward=77), "mirror", eps=0.0)
    assert how == BoundEstimator("mirror", 4, eps=0.0, tokens_per_batch=77, of_tokens=of_tokens)


def test_published_estimators_have_their_own_ratio_and_draws():
    def built(name: str, budget: int, **more):
        return estimator_of(GRPOSettings(estimator=name, budget=budget, tokens_per_forward=77, **more), "standard")

    assert built("espo", 4, group=6) == ESPO(2, False, 77, strata=6)
    assert built("espo", 2, ratio="token", group=3) == ESPO(1, True, 77, strata=3)
    assert built("coupled", 6) == Coupled(2, True, 77)
    assert built("one-step", 3) == OneStep(3, True, 77, prompt_share=0.15)
    assert built("unigrpo", 2, inner=5) == UniGRPO(2, True, 77, inner=5)
    assert built("unigrpo", 1, ratio="sequence") == UniGRPO(1, False, 77)


@pytest.mark.parametrize(("name", "budget", "instead"), [("espo", 3, 4), ("coupled", 2, 3), ("coupled", 4, 6)])
def test_another_budget_is_refused(name, budget, instead):
    with pytest.raises(UserError, match=rf"found {budget}; write grpo\.budget={instead}\.") as refusal:
        estimator_of(GRPOSettings(estimator=name, budget=budget), "standard")
    assert str(refusal.value).startswith(f"key 'grpo.budget': expected a multiple of {FORWARDS[name]}")


def test_masks_of_the_prompt_are_refused_for_a_model_in_blocks():
    with pytest.raises(UserError, match=r"'one-step', which masks tokens of the prompt, found one in blocks of 4"):
        estimator_of(GRPOSettings(estimator="one-step"), "standard", block_size=4)
    assert estimator_of(GRPOSettings(estimator="espo"), "standard", block_size=4)
