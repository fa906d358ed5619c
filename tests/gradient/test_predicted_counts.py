"""Fixed counts and complements pay 1 / (P pi_k): predictions against enumeration over all masks of a count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stabledllm.noise.densities import Clipped, Tabulated, Uniform
from stabledllm.noise.maskers import Complement, FixedCount, count_coefficients
from stabledllm.noise.sources import IID, LowDiscrepancy, Stratified
from stabledllm.ppots.profile import Profile
from stabledllm.variance.predicted import per_row_variance
from tests.fakes.meters import TableMeter

TOKENS, ROWS, RATES = 3, 40, 60
METER = TableMeter(TOKENS, n_rows=ROWS, eps=0.02)
HALVES = Tabulated([0.5, 1.5])
SMOOTH = Tabulated(2.0 - torch.linspace(0, 1, 4096, dtype=torch.float64) ** 0.5)
JUDGED = {"uniform": Uniform(), "halves": HALVES, "smooth": SMOOTH}


def losses_of_counts(masker) -> Tensor:
    """Losses at unit weight of every equally likely mask of each count; shape (ROWS, counts, 3)."""
    c = count_coefficients(TOKENS, METER.objective.eps, 0.0)
    held = METER.codes.sum(1)
    summed = (METER.table * METER.codes).sum(-1)  # (ROWS, 8)
    out = torch.empty(ROWS, TOKENS, 3, dtype=torch.float64)
    for k in range(1, TOKENS + 1):
        sets = (held == k).nonzero()[:, 0]
        loss = c[k - 1] * summed[:, sets]
        if masker == Complement() and k < TOKENS:
            loss = (loss + c[TOKENS - k - 1] * summed[:, 2**TOKENS - 1 - sets]) / 2
        out[:, k - 1] = loss.expand(-1, 3)
    return out


def exact_profile(masker) -> Profile:
    """A probe without sampling error; its cells end where counts do."""
    edges = torch.arange(RATES + 1, dtype=torch.float64) / RATES
    t = (edges[1:] + edges[:-1]) / 2
    losses = losses_of_counts(masker)[:, (t * TOKENS).long()]
    used = torch.ones(ROWS, RATES, 1, dtype=torch.bool)
    ones = torch.ones(RATES, dtype=torch.float64)
    views = losses[..., None] / TOKENS
    return Profile(edges=edges, view_losses=views, used=used, cost=ones, rows=torch.arange(ROWS))


def masses(masker, sampler) -> tuple[Tensor, Tensor]:
    """pi_k by the definition, and P times the mass that the row's weight is the reciprocal of; each (3,)."""
    edges = torch.arange(TOKENS + 1, dtype=torch.float64) / TOKENS
    pi = sampler.cdf(edges).diff()
    paid = pi.clone()
    if masker == Complement():
        paid[0] = paid[1] = (pi[0] + pi[1]) / 2  # counts 1 and 2 of 3
    return pi, paid * TOKENS


def _pair_square(values: Tensor) -> float:
    """Square of the mean of independent values: the mean product of different ones."""
    return float((values.sum() ** 2 - (values**2).sum()) / (len(values) * (len(values) - 1)))


def exact_iid(masker, sampler) -> float:
    """E l² by enumeration minus the product of the means of different rows."""
    pi, paid = masses(masker, sampler)
    losses = losses_of_counts(masker) / TOKENS / paid[:, None]
    return float((losses**2).mean((0, 2)) @ pi) - _pair_square(losses.mean(2) @ pi)


def predicted(masker, sampler, source=None, n: int = 9, corrected: bool = True) -> float:
    weighs_by = (lambda density, row: masker.weighs_by(density, TOKENS)) if corrected else None
    every = [(sampler, torch.arange(ROWS))]
    return per_row_variance(exact_profile(masker).moments, source or IID(), every, n, weighs_by).value


@pytest.mark.parametrize("masker", [FixedCount(), Complement()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(("density", "rel"), [("uniform", 1e-9), ("halves", 1e-9), ("smooth", 2e-4)])
def test_iid_is_exact(masker, density, rel):
    sampler = JUDGED[density]
    assert predicted(masker, sampler) == pytest.approx(exact_iid(masker, sampler), rel=rel)


@pytest.mark.parametrize("masker", [FixedCount(), Complement()], ids=lambda m: type(m).__name__)
def test_one_over_p_of_t_would_be_far_off(masker):
    """What the correction is for: 1/p(t) averages to more than 1 over the mean of p."""
    exact = exact_iid(masker, HALVES)
    assert predicted(masker, HALVES, corrected=False) > 1.2 * exact


@pytest.mark.parametrize("masker", [FixedCount(), Complement()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("source", [Stratified(3), LowDiscrepancy()], ids=lambda s: s.name)
def test_what_a_source_removes(masker, source):
    """From the step function h(u) itself: the variance of its stratum means, or all but that of the lattice's mean."""
    n, fine = 9, 6000
    u = (torch.arange(n * fine, dtype=torch.float64) + 0.5) / (n * fine)
    count = (HALVES.icdf(u) * TOKENS).long()
    h = (losses_of_counts(masker).mean(2) / TOKENS / masses(masker, HALVES)[1])[:, count]

    def removed(values: Tensor) -> float:
        if source.name == "strats":
            return float(values.view(3, -1).mean(1).var(correction=0))
        return float(values.var(correction=0)) - n * float(values.view(n, fine).mean(0).var(correction=0))

    each = torch.tensor([removed(row) for row in h], dtype=torch.float64)
    exact = float((ROWS**2 * removed(h.mean(0)) - each.sum()) / (ROWS * (ROWS - 1)))
    found = predicted(masker, HALVES) - predicted(masker, HALVES, source)
    # The prediction joins the probe's rates by lines where the loss has steps.
    assert found == pytest.approx(exact, rel=0.05)


def test_weights_of_the_density_are_those_drawn():
    """``weighs_by`` against the masses by their definition, for both maskers; its total mass is 1."""
    middle = torch.tensor([1, 3, 5], dtype=torch.float64) / 6
    for masker in (FixedCount(), Complement()):
        for sampler in JUDGED.values():
            density = masker.weighs_by(sampler, TOKENS)
            assert torch.allclose(density.weight(middle), 1 / masses(masker, sampler)[1])
            assert float(density.density.mean()) == pytest.approx(1)
    clipped = Clipped(0.3, 0.8)
    assert FixedCount().weighs_by(clipped, TOKENS) is clipped
