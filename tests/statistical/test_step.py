"""StraTS and low discrepancy: the loss of a whole step is unbiased and has its exact variance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.streams import Key
from tests.checks.moments import check_step, rows_of
from tests.oracle import conditional, objective_by_quadrature, panels, step_variance, toy_row
from tests.statistical.cases import case

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


@pytest.mark.parametrize("text", ["fixedcount", "ppots", "ppots+fixedcount+mirror", "partition", "ppots+complement"])
def test_low_discrepancy(text):
    check_step(parse(f"lowdisc+{text}"), case(text, power=int(text == "fixedcount")), 8)


class Offset:
    """Stands for a key: every step has the given offset of the lattice, and its rows in order."""

    def __init__(self, offset: float):
        self.offset = offset

    def several(self, streams, n, device) -> torch.Tensor:
        return torch.stack((torch.full((n,), self.offset), torch.arange(n) / n)).double()


@pytest.mark.parametrize("n", [1, 5, 8])
@pytest.mark.parametrize("text", ["ppots", "ppots+mirror", "ppots+fixedcount"])
def test_the_lattice_through_the_inverse_cdf_by_quadrature(text, n):
    """The library's own points, densities and weights integrated over the offset: the exact mean and variance.

    No sampling: given t the moments of the masks are the enumeration's, at weight 1.
    """
    row, chosen = toy_row(3), case(text)
    source = parse(f"lowdisc+{text}").source
    u0, du = panels(np.unique(chosen.setting.cdf(chosen.setting.kinks(row.size)) % (1 / n)), 0.0, 1 / n)
    plain = replace(chosen.setting, density=(1.0,))
    u = torch.cat([source.uniforms(Offset(offset), n, torch.device("cpu")) for offset in u0])
    t = chosen.sampler.icdf(u)
    weight = chosen.method.draw_at(t, Key(0, 0), rows_of(row, len(t)), chosen.sampler).weight
    w = weight.numpy()[:, None]
    mean, second = conditional(plain, row, t.numpy())
    mean, second = (x.reshape(len(u0), n, -1) for x in (mean * w, second * w**2))
    step, share = mean.mean(1), (du * n)[:, None]
    first = (share * step).sum(0)
    variance = (share * step**2).sum(0) - first**2 + (share * (second - mean**2).sum(1)).sum(0) / n**2
    assert first == pytest.approx(objective_by_quadrature(row, plain.eps), rel=1e-9)
    exact = step_variance(chosen.setting, row, "lowdisc", n)
    assert variance == pytest.approx(exact, rel=1e-9)
    # It has power: iid points are noisier (for one row they are the same thing).
    assert n == 1 or exact[0] < 0.9 * step_variance(chosen.setting, row, "iid", n)[0]


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
