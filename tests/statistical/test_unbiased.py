"""Every method, drawn by the library, has the mean and the variance that enumeration gives, in loss and gradient."""

import pytest

from tests.checks.moments import check_case, check_mean, sample, standard_mean
from tests.oracle import moments, toy_row
from tests.statistical.cases import BELLS, BIASED, OTHER_OBJECTIVES, SMALL_EPS, UNBIASED, WINDOWS, ZERO_EPS, case

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("case", UNBIASED + ZERO_EPS + OTHER_OBJECTIVES + WINDOWS + BELLS, ids=str)
def test_mean_and_variance_are_exact(case):
    assert case.method.unbiased
    check_case(case)


@pytest.mark.parametrize("case", SMALL_EPS, ids=str)
def test_mean_is_exact_at_lladas_eps(case):
    check_case(case, with_variance=False)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("text", ["standard", "mirror", "ppots+fixedcount+mirror", "isad-exact"])
def test_short_responses_too(text, size):
    check_case(case(text), size, n=50_000)


def test_six_tokens():
    check_case(case("ppots+mirror"), 6, n=100_000)


@pytest.mark.parametrize("case", BIASED, ids=str)
def test_biased_methods_have_their_own_enumerated_objective(case):
    """...and it is not the standard one, which the library says by ``unbiased``."""
    assert not case.method.unbiased
    check_case(case)
    row = toy_row(4)
    with pytest.raises(AssertionError, match="mean of loss"):
        check_mean(sample(case, row), standard_mean(case.setting, row), case)


def test_mirror_and_fixed_count_reduce_the_variance_here():
    """On a toy row whose losses grow with every mask, where docs/mathematics.md#views guarantees rho <= 0."""
    row = toy_row(4)
    texts = ("standard", "mirror", "multisample", "fixedcount")
    variance = {text: moments(case(text).setting, row)[1][0] for text in texts}
    assert variance["mirror"] < variance["multisample"] < variance["standard"]
    assert variance["fixedcount"] < variance["standard"]
