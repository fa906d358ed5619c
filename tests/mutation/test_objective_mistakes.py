"""Mistakes in bells and in objectives that weigh or choose tokens, each of which the enumeration notices."""

import pytest
import torch

from stabledllm.forward import chosen
from stabledllm.noise import tokens, windows
from tests.checks.moments import check_case
from tests.forward.test_chosen import CART, LIFTED
from tests.forward.test_chosen import test_gift_has_the_mean_and_variance_of_its_own_masks as check_gift
from tests.forward.test_chosen import test_mean_and_variance_are_those_of_the_enumeration as check
from tests.mutation.inject import noticed
from tests.statistical.cases import under_bell

pytestmark = [pytest.mark.statistical, pytest.mark.long]


def test_easy_tokens_where_hard_ones_belong(monkeypatch):
    monkeypatch.setattr(chosen, "choice", lambda p: -tokens.choice(p))
    noticed(check, "standard", LIFTED, match="mean")


def test_an_exact_count_whose_ratio_is_drawn_as_if_counts_told_all(monkeypatch):
    """The law of p given the count without the weight 1 / p."""

    def unweighted(count, size, u, objective):
        return tokens.p_given_count(count + 1, size + 1, u, objective)

    monkeypatch.setattr(chosen, "p_given_count", unweighted)
    noticed(check, "fixedcount", LIFTED, match="mean|variance")


def test_a_larger_set_that_is_the_whole_response(monkeypatch):
    monkeypatch.setattr(chosen, "further_ratio", lambda p, u: torch.where(p < 0.9, 1 - p, 0.0))
    noticed(check, "fixedcount", LIFTED, match="mean|variance")


def test_cart_that_sees_masked_tokens(monkeypatch):
    monkeypatch.setattr(chosen, "cart_weights", lambda visible: tokens.cart_weights(torch.ones_like(visible)))
    noticed(check, "fixedcount", CART, match="mean")


def test_gift_that_weighs_by_the_rows_probability(monkeypatch):
    """Masks by q, weights by p: what LLaDA's loss would make of them."""

    def alike(entropy, maskable, p):
        return tokens.gift_probabilities(torch.ones_like(entropy), maskable, p)

    monkeypatch.setattr(chosen, "gift_probabilities", alike)
    noticed(check_gift, "standard", match="mean|variance")


def test_a_bell_whose_counts_have_the_law_of_the_bound(monkeypatch):
    monkeypatch.setattr(windows, "quantile", lambda u, bell: u)
    noticed(check_case, under_bell("standard", 2, 2), match="mean of|variance of")
