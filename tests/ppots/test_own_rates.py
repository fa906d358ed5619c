"""A density is judged at each row's own rate: second moments and variances of steep losses against integrals."""

from __future__ import annotations

import pytest
import torch

from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.sources import IID, LowDiscrepancy, Stratified
from stabledllm.ppots.cells import cell_kernels
from stabledllm.ppots.crossfit import weighted_moment
from stabledllm.ppots.fit import FitOptions
from stabledllm.ppots.profile import Profile, probe
from stabledllm.ppots.record import fit_density
from stabledllm.variance.predicted import per_row_variance
from tests.checks.statistics import Z, assert_mean
from tests.fakes.laws import Law
from tests.fakes.meters import FakeMeter

CELLS = 4096
T = (torch.arange(CELLS * 8, dtype=torch.float64) + 0.5) / (CELLS * 8)
SHAPES = {
    "spike at 1": lambda t: 1 + 40 * torch.exp(40 * (t - 1)),
    "spike at 0": lambda t: 1 + 30 * torch.exp(-60 * t),
    "step": lambda t: 1 + 9.0 * (t > 0.613),
    "power, falling": lambda t: (t + 1e-3) ** -0.4,
    "power, rising": lambda t: 0.2 + 5 * t**9,
}
SEEDS, STEP = 60, 12


def law_of(shape: str) -> Law:
    h = SHAPES[shape]
    return Law(tau2=0.01, h=h, sd=lambda t: 0.3 * h(t))


def best_for(law: Law) -> Tabulated:
    """p*, the root of the second moment: it bends within every cell as much as the loss does."""
    return Tabulated(law.second_moment((torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS).sqrt())


def second_under(law: Law, p: Tabulated) -> float:
    return float((law.second_moment(T) * p.weight(T)).mean())


def left_by(law: Law, p: Tabulated, source: str) -> float:
    """n Var of a step of STEP rows, by integrals over u: all but h's own part, and what the source leaves of that."""
    k = {"iid": 1, "strats": 4, "lowdisc": STEP}[source]
    t = p.icdf((torch.arange(k * 8000, dtype=torch.float64) + 0.5) / (k * 8000))
    h = (law.h(t) * p.weight(t)).view(k, 8000)
    within = second_under(law, p) - float((h**2).mean())
    if source == "lowdisc":
        return within + STEP * float(h.mean(0).var(correction=0))
    return within + float(h.var(1, correction=0).mean())


@pytest.fixture(scope="module", params=SHAPES)
def probed(request) -> tuple[Law, list[Profile]]:
    law = law_of(request.param)
    meter = FakeMeter(law, 4000)
    sizes = {"rows": 60, "rates": 6, "masks": 2, "design": "stratified"}
    return law, [probe(meter, Method(), seed=s, **sizes) for s in range(SEEDS)]


@pytest.mark.statistical
def test_second_moments_are_unbiased(probed):
    law, profiles = probed
    p, every = best_for(law), torch.arange(60)
    exact = second_under(law, p)
    found = torch.stack([weighted_moment(f.moments, [(p, every)]).mean() for f in profiles])
    assert_mean(found, exact, "second moment")
    assert abs(float(found.mean()) / exact - 1) < 0.03
    if law.h is SHAPES["spike at 1"]:
        averages = [f.moments.moment.mean(0) @ (cell_kernels(p, f.edges)[0] * f.width) for f in profiles]
        assert float(torch.stack(averages).mean()) > 1.5 * exact, "products of two averages over a cell are far off"


@pytest.mark.statistical
@pytest.mark.parametrize("source", [IID(), Stratified(4), LowDiscrepancy()], ids=lambda s: s.name)
def test_variances_of_steps_are_judged_without_bias(probed, source):
    law, profiles = probed
    p, every = best_for(law), torch.arange(60)
    exact = left_by(law, p, source.name)
    found = [per_row_variance(f.moments, source, [(p, every)], STEP) for f in profiles]
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    z = (values - exact) / torch.tensor([e.stderr for e in found], dtype=torch.float64)
    rough = 0.0 if source.name == "iid" else 0.02 * exact  # straight lines between the pieces of a cell
    assert abs(float(values.mean()) - exact) < Z * float(values.std()) / SEEDS**0.5 + rough
    assert abs(float(z.mean())) < Z / SEEDS**0.5 + (0 if source.name == "iid" else 0.3)
    assert float(z.std()) < 1.3, "the rows' lattice makes it smaller, the jackknife does not know it"


@pytest.mark.parametrize("seed", range(4))
def test_epr_near_the_floor_is_not_given_up_for_a_worse_table(seed):
    law = law_of("spike at 1")
    profile = probe(FakeMeter(law), Method(), rows=100, rates=12, masks=2, seed=seed, design="stratified")
    density = fit_density(profile, Method.parse("ppots"), FitOptions(starts=4))
    floor = float(law.second_moment(T).sqrt().mean()) ** 2
    assert density.record["kind"] == "epr", density.fallback
    assert second_under(law, density.sampler) < 1.05 * floor
