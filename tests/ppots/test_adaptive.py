"""Adaptive P-POTS: what it estimates, that it follows, that it stays unbiased, and that its state is all of it."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.views import Mirror
from stabledllm.ppots.adaptive import AdaptiveDensity, AdaptiveOptions
from tests.checks.statistics import Z


def one_view(t: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(t)


def adaptive(shared_noise: bool = True, cost=one_view, start=None, **options) -> AdaptiveDensity:
    return AdaptiveDensity(
        AdaptiveOptions(**{"every": 10, "half_life": 50, "rates": 8} | options),
        shared_noise=shared_noise,
        cost=cost,
        eps=0.1,
        start=start,
    )


def early(t: torch.Tensor) -> torch.Tensor:
    """Root of the second moment before training: large at high t."""
    return 0.2 + 3 * t**3


def late(t: torch.Tensor) -> torch.Tensor:
    """After it: large at low t."""
    return 0.2 + 2 * (1 - t) ** 3


def steps(density: AdaptiveDensity, root, count: int, seed: int, rows: int = 32) -> list[float]:
    """Train on losses ``root(t) z`` with E z² = 1; the weighted squares drawn."""
    generator = torch.Generator().manual_seed(seed)
    sampler, drawn = density.sampler(), []
    for _ in range(count):
        t = sampler.icdf(torch.rand(rows, generator=generator, dtype=torch.float64))
        z = 0.6 + 0.8 * torch.randn(rows, generator=generator, dtype=torch.float64)
        loss = root(t) * z * sampler.weight(t)
        drawn += loss.tolist()
        if density.update(t, sampler.weight(t), loss):
            sampler = density.sampler()
    return drawn


def second_moment(sampler, root) -> float:
    """``∫ m / p dt`` by quadrature."""
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    return float((root(t) ** 2 * sampler.weight(t)).mean())


def least(root) -> float:
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    return float(root(t).mean()) ** 2


def test_it_follows_a_moving_optimum_while_a_fixed_density_goes_stale():
    density = adaptive()
    steps(density, early, 300, seed=1)
    fixed = density.sampler()
    assert second_moment(fixed, early) < 1.06 * least(early)
    steps(density, late, 400, seed=2)
    assert second_moment(fixed, late) > 1.5 * least(late), "what was best before is not any more"
    assert second_moment(density.sampler(), late) < 1.08 * least(late)
    assert second_moment(Uniform(), late) > 1.3 * least(late), "so that following is worth something"


def test_the_moments_are_the_cells_whatever_they_were_drawn_from():
    """Under a lopsided density, whose draws within a cell are not uniform either."""
    found = []
    for seed in range(30):
        density = adaptive(every=10_000, half_life=1e9, start=Tabulated([4.0, 1.0, 1.0, 0.5, 0.25, 2.0, 1.0, 1.0]))
        steps(density, early, 40, seed)
        w, _, _, second = density.sums
        found.append(second / w)
    found = torch.stack(found)
    edges = density.edges
    truth = torch.stack(
        [
            (early(low + (high - low) * (torch.arange(200) + 0.5) / 200) ** 2).mean()
            for low, high in itertools.pairwise(edges)
        ]
    )
    # Ratio estimates: their bias of order 1/n is well below their error here.
    assert ((found.mean(0) - truth).abs() < Z * found.std(0) / 30**0.5 + 0.01 * truth).all()


def test_training_under_it_stays_unbiased():
    """E z = 0.6, so the mean weighted loss is 0.6 ∫ root whatever p was in force."""
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    density = adaptive(every=2, half_life=4)
    drawn = torch.tensor(steps(density, early, 1500, seed=5), dtype=torch.float64)
    by_step = drawn.view(-1, 32).mean(1)
    assert abs(by_step.mean() - 0.6 * early(t).mean()) < Z * by_step.std() / len(by_step) ** 0.5


def test_for_strata_what_all_rows_share_is_left_out():
    """A loss that is the same for all rows and masks is averaged out by the strata: nothing is to be gained by p."""
    t = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = 5 * (t > 0.5) + late(t) * z
    one = torch.ones_like(t)
    strata, iid = adaptive(shared_noise=False), adaptive(shared_noise=True)
    for density in (strata, iid):
        density.update(t, one, loss)
    low, high = strata.middle < 0.4, strata.middle > 0.6
    assert iid.moments()[high].mean() > 10 * strata.moments()[high].mean()
    assert strata.moments()[low].mean() > 3 * strata.moments()[high].mean()


def test_the_cost_of_a_second_view_counts():
    cheap = adaptive(cost=Mirror(below=0.5).cost)
    dear = adaptive(cost=Mirror().cost)
    for density in (cheap, dear):
        steps(density, lambda t: torch.ones_like(t), 200, seed=3)
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    ratio = cheap.sampler().log_prob(t).exp()
    # p is proportional to root(m / kappa): a factor of root 2, blunted by the uniform share and smoothing.
    assert 1.3 < float(ratio[1] / ratio[0]) < 1.45
    assert dear.sampler().log_prob(t).exp().sub(1).abs().max() < 0.1


def test_state_is_everything():
    one = adaptive()
    steps(one, early, 37, seed=9)
    stored = json.loads(json.dumps(one.state()))
    other = adaptive()
    other.load(stored)
    assert other.sampler().density.equal(one.sampler().density)
    for density in (one, other):
        steps(density, late, 25, seed=10)
    assert one.state() == other.state()
    assert [entry["step"] for entry in one.history] == [10, 20, 30, 40, 50, 60]


def test_last_bits_of_the_losses_do_not_move_it():
    one, other = adaptive(), adaptive()
    t = torch.rand(640, generator=torch.Generator().manual_seed(4), dtype=torch.float64).view(20, 32)
    for row in t:
        weight = torch.ones_like(row)
        one.update(row, weight, early(row))
        other.update(row, weight, early(row) * (1 + 1e-14))
    assert one.sampler().density.equal(other.sampler().density)


def test_before_any_refit_it_is_its_start():
    start = Tabulated([1.0, 3.0])
    assert isinstance(adaptive().sampler(), Uniform)
    assert adaptive(start=start).sampler() is start


def test_refusals():
    with pytest.raises(UserError, match="every >= 1"):
        AdaptiveOptions(every=0)
    with pytest.raises(UserError, match="contradict"):
        Method.parse("ppots+adaptive")
    assert Method.parse("adaptive+lowdisc+fixedcount").name == "lowdisc+adaptive+fixedcount"
    assert Method.parse("adaptive").unbiased
    assert not Method.parse("adaptive").needs_p
