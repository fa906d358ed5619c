"""Masks have the right marginals and couplings; only maskable tokens are masked; fixed counts are exact."""

import math

import pytest
import torch
from scipy import special

from stabledllm.errors import UserError
from stabledllm.noise import counts
from stabledllm.noise.maskers import ISAD, count_coefficients
from stabledllm.noise.schedule import p_mask
from tests.checks.noise import check_isad_weights, check_mirror, check_only_maskable, draw_at, mask_correlation
from tests.checks.statistics import assert_mean
from tests.oracle import Setting, count_coefficient


def test_schedule():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert p_mask(t).tolist() == pytest.approx([1e-3, 0.5005, 1.0], rel=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.7, 0.95])
def test_mirror_marginals_correlation_and_coverage(t):
    check_mirror(t)


def test_mirror_correlation_figures():
    assert mask_correlation("mirror", 0.3) == pytest.approx(-3 / 7, abs=0.01)
    assert mask_correlation("mirror", 0.5) == pytest.approx(-1, abs=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("text", ["multisample", "multisample3"])
def test_multisample_views_are_uncorrelated(text):
    mask = draw_at(text, 0.5).mask.double() - 0.5
    for other in range(1, mask.shape[1]):
        assert_mean((mask[:, 0] * mask[:, other]).flatten(), 0.0, "covariance of masks")
    assert mask.shape[1] == int(text.removeprefix("multisample") or 2)


@pytest.mark.statistical
@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 3), (3, 4)])
def test_tokens_are_independent(i, j):
    mask = draw_at("standard", 0.4, length=8).mask[:, 0].double() - 0.4
    assert_mean(mask[:, i] * mask[:, j], 0.0, "covariance of two tokens")


@pytest.mark.parametrize(
    "text",
    [
        "standard",
        "mirror",
        "multisample",
        "partition",
        "fixedcount+mirror",
        "fixedcount+partition",
        "complement",
        "isad+mirror",
        "isad-exact",
    ],
)
def test_only_maskable_tokens_are_masked(text):
    check_only_maskable(text)


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("t", [1e-9, 0.25, 0.2500001, 0.6, 1.0])
def test_fixed_count_is_exact_in_both_views(length, t):
    mask = draw_at("fixedcount+mirror", t, n=200, length=length, prompt=2, padding=3).mask
    assert bool((mask.sum(-1) == max(1, math.ceil(t * length))).all())


def test_mirrored_fixed_count_takes_the_other_end_of_one_order():
    """The k largest uniforms against the k smallest: the least overlap that two sets of k can have."""
    for t, overlap in ((0.4, 0), (0.5, 0), (0.75, 2)):
        mask = draw_at("fixedcount+mirror", t, n=300).mask
        assert bool(((mask[:, 0] & mask[:, 1]).sum(-1) == overlap).all())


@pytest.mark.statistical
def test_fixed_count_takes_every_token_alike():
    mask = draw_at("fixedcount+mirror", 0.5, length=5).mask.double()
    for view in (0, 1):
        for token in range(5):
            assert_mean(mask[:, view, token], 0.6, f"view {view}, token {token}")


@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1])
def test_count_coefficients_are_omega_k_over_k(size, eps):
    k = torch.arange(1, size + 1).double()
    omega = (1 - special.betainc(k.numpy(), (size - k + 1).numpy(), eps)) / (1 - eps)
    assert torch.allclose(count_coefficients(size, eps, 0), torch.from_numpy(omega) / k, rtol=1e-9)


@pytest.mark.parametrize("power", [0, 1, 0.5, 1.7, 3.0])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1])
def test_count_coefficients_are_the_integral_over_t(power, eps):
    setting = Setting(eps=eps, power=power)
    expected = [count_coefficient(setting, 6, k) for k in range(1, 7)]
    assert count_coefficients(6, eps, power).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1, 6, 400])
def test_real_powers_meet_the_integer_ones(size):
    """Two derivations of 1 - I_eps, and powers a hair beside an integer."""
    for power in (0, 1, 2):
        one, other = (f(size, 1e-3, power) for f in (counts._above_beta, counts._above_binomial))
        assert torch.allclose(one, other, rtol=1e-11, atol=0)
        beside = count_coefficients(size, 1e-3, power + 1e-9)
        assert torch.allclose(beside, count_coefficients(size, 1e-3, power), rtol=1e-7, atol=0)


def test_count_coefficients_stay_finite_for_long_responses():
    for power, expected in ((0, 1.0), (1, (1 + 1e-3) / 2), (0.5, (1 - 1e-3**1.5) / (1.5 * (1 - 1e-3)))):
        c = count_coefficients(4000, 1e-3, power)
        assert bool((torch.isfinite(c) & (c >= 0)).all())
        # Sum of c_k k / P is E[p^(a-1) p] = E[p^a].
        total = float((c * torch.arange(1, 4001)).sum()) / 4000
        assert total == pytest.approx(expected, rel=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize(("text", "expected"), [("isad", 1.0), ("isad-exact", 0.95)])
def test_isad_masks_delimiters_more_often(text, expected):
    mask = draw_at(text, 0.85, prompt=1, delimiter=(0, 2)).mask[:, 0].double()
    assert_mean(mask[:, 1], 0.85, "other token")
    assert_mean(mask[:, 2], expected, "delimiter")
    assert_mean(draw_at(text, 0.3, prompt=1, delimiter=(2,)).mask[:, 0, 2].double(), 0.5, "delimiter at t = 0.3")


@pytest.mark.statistical
def test_isads_token_weights_have_mean_one():
    check_isad_weights()


@pytest.mark.parametrize("t", [0.0, 0.5, 0.96, 1.0])
def test_isad_exact_has_finite_weights(t):
    draw = draw_at("isad-exact", t, n=1000, delimiter=(0, 2), eps=1e-3)
    assert bool(torch.isfinite(draw.coefficient).all())


def test_isad_without_delimiters_set_is_standard():
    """With no delimiter in the row, both forms are the standard method bit for bit."""
    for text in ("isad", "isad-exact"):
        plain, isad = draw_at("standard", 0.3, n=500), draw_at(text, 0.3, n=500)
        assert torch.equal(plain.mask, isad.mask)
        assert torch.allclose(plain.coefficient, isad.coefficient)


@pytest.mark.parametrize("delta", [-0.1, 1.5])
def test_bad_isad_delta_is_refused(delta):
    with pytest.raises(UserError, match="isad_delta"):
        ISAD(delta)
