"""StraTS and low discrepancy: right counts per stratum, a shifted lattice, and uniform u for every row."""

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.sources import IID, LowDiscrepancy, Stratified
from stabledllm.noise.streams import Key
from tests.checks.noise import check_row_marginals, check_strata

CPU = torch.device("cpu")


def steps(source, n: int, count: int = 1500) -> list[torch.Tensor]:
    return [source.uniforms(Key(6, step), n, CPU) for step in range(count)]


@pytest.mark.parametrize(("n", "k"), [(8, 4), (8, 3), (9, 3), (7, 7), (3, 5), (1, 1), (10, 4)])
def test_each_stratum_holds_its_share(n, k):
    check_strata(steps(Stratified(k), n, 100), n, k)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 2), (8, 3), (9, 3), (32, 6)])
def test_default_number_of_strata_is_the_root(n, k):
    assert Stratified().count(n) == k


@pytest.mark.statistical
@pytest.mark.parametrize("source", [IID(), Stratified(), Stratified(5), LowDiscrepancy()], ids=repr)
@pytest.mark.parametrize("n", [3, 6])
def test_each_rows_u_is_uniform(source, n):
    check_row_marginals(steps(source, n))


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_low_discrepancy_points_are_a_shifted_lattice(n):
    for u in steps(LowDiscrepancy(), n, 20):
        ordered = u.sort().values
        assert torch.allclose(ordered.diff(), torch.full((n - 1,), 1 / n, dtype=torch.float64), atol=1e-12)
        assert 0 < float(ordered[0]) < 1 / n + 1e-12


def test_lattice_points_reach_every_row():
    """Which row holds the least point changes from step to step."""
    assert {int(u.argmin()) for u in steps(LowDiscrepancy(), 4, 60)} == {0, 1, 2, 3}


@pytest.mark.parametrize("strata", [0, -1])
def test_bad_number_of_strata_is_refused(strata):
    with pytest.raises(UserError, match="at least 1 stratum"):
        Method.parse("strats", MethodOptions(strata=strata))
