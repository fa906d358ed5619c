"""``objective.normalization=token`` in what is measured, predicted and fitted, against steps as training takes them.

A step's loss is ``sum P l / sum P``. What is measured is n times the variance of ``(P / E[P]) (l - m)``, its first
order in 1 / n: for steps of 32 rows of 1 to 20 tokens the two agree within a few per cent.
"""

from __future__ import annotations

import pytest
import torch

from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.ppots.adaptive import AdaptiveDensity, AdaptiveOptions
from stabledllm.ppots.crossfit import variance_under
from stabledllm.ppots.profile import probe
from stabledllm.variance.components import decompose, nested_losses
from stabledllm.variance.drawn import measure
from stabledllm.variance.predicted import per_row_variance
from tests.fakes.meters import TokenMeter

pytestmark = pytest.mark.statistical
SIZES = (1, 4, 20)
FIXED = Method.parse("fixedcount")
N = 32


def meter(normalization: str = "token") -> TokenMeter:
    return TokenMeter(SIZES, 3000, eps=0.05, normalization=normalization)


def step_variance(method: Method, sampler=None, steps: int = 600) -> float:
    """n Var of ``sum P l / sum P``, the loss that training minimises, over drawn steps of n rows."""
    plain = meter("row")
    index = (torch.rand(steps * N, generator=torch.Generator().manual_seed(0)) * len(plain.rows)).long()
    u = torch.cat([method.source.uniforms(Key(9, s), N, torch.device("cpu")) for s in range(steps)])
    sampler = sampler or Uniform()
    losses = plain.losses(index, sampler.icdf(u), method, Key(9, 10**6), sampler).view(steps, N)
    size = plain.size[index].view(steps, N)
    return N * float(((losses * size).sum(1) / size.sum(1)).var())


SLOPED = Tabulated([1.8, 1.2, 0.6, 0.4])


CASES = [("standard", None), ("fixedcount", SLOPED), ("lowdisc+fixedcount", None)]


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_measured_and_predicted_variances_are_those_of_the_steps(name, sampler):
    method, density = Method.parse(name), sampler or Uniform()
    truth = step_variance(method, sampler)
    measured = measure(meter(), method, density, rows=N, steps=400, seed=1)
    assert measured.per_row_variance.value == pytest.approx(truth, rel=0.25)
    assert measured.mean.value == pytest.approx(meter().mean, abs=5 * measured.mean.stderr)
    rows_mean = measure(meter("row"), method, density, rows=N, steps=400, seed=1).per_row_variance.value
    assert abs(rows_mean / truth - 1) > 0.15, "or the two means are one"
    profile = probe(meter(), method, rows=600, rates=6, masks=2, seed=2, design="stratified")
    crossfit = [(density, torch.arange(600))]
    size = meter().size
    weighs = lambda p, row: method.masker.weighs_by(p, int(size[profile.rows[row]]))  # noqa: E731
    predicted = per_row_variance(profile.moments, method.source, crossfit, N, weighs)
    assert predicted.value == pytest.approx(truth, rel=0.25)
    if name == "standard":
        assert variance_under(profile.moments, [(Tabulated([1.0]), torch.arange(600))]).value == pytest.approx(
            truth, rel=0.25
        )


def test_components_add_up_to_the_variance_of_a_step():
    found = decompose(nested_losses(meter(), Method(), rows=400, rates=6, masks=2, seed=0, some_masked=True))
    assert found.total.value == pytest.approx(step_variance(Method()), rel=0.25)
    assert found.data.value == pytest.approx(meter().data, abs=4 * found.data.stderr)
    assert found.mean.value == pytest.approx(meter().mean, abs=4 * found.mean.stderr)


def test_rows_of_one_length_count_as_under_the_row_mean():
    one, other = (
        decompose(nested_losses(TokenMeter((5,), 60, normalization=n), Method(), rows=40, rates=4, masks=2, seed=0))
        for n in ("row", "token")
    )
    for name in ("mask_pattern", "mask_rate", "data", "total", "mean"):
        assert getattr(one, name).value == pytest.approx(getattr(other, name).value, rel=1e-9)


def test_adaptive_follows_what_a_row_adds_to_the_step():
    """Of short rows with loss at small t and long ones at large t, the long ones decide."""
    t = torch.tensor([0.05, 0.95]).double().repeat(50)
    size = torch.tensor([1.0, 30.0]).double().repeat(50)

    def density(loss: torch.Tensor) -> torch.Tensor:
        following = AdaptiveDensity(AdaptiveOptions(every=1), shared_noise=True, cost=torch.ones_like, eps=1e-3)
        following.update(t, torch.ones_like(t), loss)
        return following.sampler().log_prob(torch.tensor([0.05, 0.95]).double())

    low, high = density(torch.ones_like(t) * size)
    assert high > low + 1
    assert float((density(torch.ones_like(t))).diff().abs()) < 0.2


def test_shares():
    assert Objective().row_share(torch.tensor([1, 3])).tolist() == [1.0, 1.0]
    assert Objective(normalization="token").row_share(torch.tensor([1, 3])).tolist() == [0.5, 1.5]
