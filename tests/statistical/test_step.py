"""StraTS and low discrepancy: the loss of a whole step is unbiased and has its exact variance."""

import pytest

from stabledllm.noise.methods import Method, MethodOptions
from tests.oracle import step_variance, toy_row
from tests.statistical.cases import case
from tests.statistical.checks import check_step

pytestmark = pytest.mark.statistical


def parse(text: str, strata: int | None = None) -> Method:
    return Method.parse(text, MethodOptions(strata=strata))


@pytest.mark.parametrize("n", [4, 8])
def test_strats(n):
    """8 rows on ceil(sqrt 8) = 3 strata: two strata get an extra point."""
    check_step(parse("strats+fixedcount"), case("fixedcount", power=1), n)


def test_strats_with_ppots_and_mirror():
    check_step(parse("strats+ppots+mirror"), case("ppots+mirror"), 8)


def test_more_strata_than_rows():
    check_step(parse("strats+fixedcount", strata=7), case("fixedcount", power=1), 4)


@pytest.mark.parametrize("text", ["fixedcount", "ppots"])
def test_low_discrepancy(text):
    check_step(parse(f"lowdisc+{text}"), case(text, power=int(text == "fixedcount")), 8)


def test_the_exact_variance_tells_the_sources_apart():
    """The check above has power only where the sources differ: here by far more than its standard error."""
    row, setting = toy_row(3), case("fixedcount", power=1).setting
    iid, strats, lattice = (step_variance(setting, row, s, 8, strata=3)[0] for s in ("iid", "strats", "lowdisc"))
    assert max(strats, lattice) < 0.2 * iid


@pytest.mark.parametrize("text", ["standard", "ppots+mirror", "fixedcount"])
def test_stratifying_never_costs(text):
    """By enumeration: the variance between strata is gone, so a step is never noisier than an iid one."""
    row, setting = toy_row(4), case(text).setting
    for n in (4, 8, 9):
        iid = step_variance(setting, row, "iid", n)
        assert (step_variance(setting, row, "strats", n, strata=3) <= iid * (1 + 1e-12)).all()


def test_with_as_many_strata_as_rows_only_the_noise_within_is_left():
    row, setting = toy_row(4), case("fixedcount").setting
    assert step_variance(setting, row, "strats", 8, strata=8)[0] < 0.5 * step_variance(setting, row, "iid", 8)[0]
