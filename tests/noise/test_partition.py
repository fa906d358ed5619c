"""Partition views: right marginals, disjoint while K p <= 1, covering from K p = 1 on; for K = 2 the law of MIRROR."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.maskers.fixed_count import masked_count
from stabledllm.noise.views import Mirror, Partition, Single
from tests.checks.moments import check_case
from tests.checks.noise import draw_at
from tests.oracle import Setting, moments, toy_row
from tests.statistical.cases import EPS, FITTED, Case, case

GRID = 27720
"""Equally likely values of u, a multiple of every number up to 12: masses on it are exact."""


class EveryUniform:
    """Stands for a key: all values of the grid, one a token of one row."""

    def token_uniforms(self, *_, **__) -> Tensor:
        return ((torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID)[None]


def masked_by(views: Single, p: float) -> Tensor:
    """Which views mask each u of the grid, bool, shape (K, GRID)."""
    return views.uniforms(EveryUniform(), torch.zeros(1).long(), torch.arange(GRID))[0] < p


def law(outcomes: Tensor) -> dict[tuple, int]:
    """How often each column occurs."""
    columns, times = outcomes.unique(dim=1, return_counts=True)
    return dict(zip(map(tuple, columns.T.tolist()), times.tolist(), strict=True))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("p", [0.1, 0.25, 1 / 3, 0.5, 0.6, 0.9, 1.0])
def test_marginals_are_exact_and_overlap_is_least(count, p):
    """Every token is masked by floor(K p) views or by one more: at most one up to 1/K, at least one from there."""
    masked = masked_by(Partition(count), p)
    assert (masked.sum(1) - p * GRID).abs().max() <= 1
    assert set(masked.sum(0).tolist()) <= {math.floor(count * p + 1e-9), math.ceil(count * p - 1e-9)}


@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_at_one_over_k_the_views_part_the_response(count):
    mask = draw_at(f"partition{count}", 1 / count, n=2000, length=9, prompt=1).mask
    assert bool((mask[..., 1:].sum(1) == 1).all())


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.7, 1.0])
def test_two_views_have_mirrors_joint_law(p):
    assert law(masked_by(Partition(2), p)) == law(masked_by(Mirror(), p))


def fixed_masks(views: Single, size: int, k: int) -> Tensor:
    """Masks of the views for every order of ``size`` tokens, shape (size!, K, size + 1); place 0 is not maskable."""
    orders = torch.tensor(list(itertools.permutations(range(size)))).double()
    u = torch.nn.functional.pad((orders + 0.5) / size, (1, 0), value=0.01)[:, None]
    maskable = (torch.arange(size + 1) > 0).expand(len(orders), -1)
    both = torch.cat((u, 1 - u), dim=1) if views.count == 2 else u.expand(-1, views.count, -1)
    return (views.ranks(both, maskable) < k) & maskable[:, None]


@pytest.mark.parametrize("count", [2, 3, 4, 9])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_fixed_counts_are_disjoint_then_cover(count, size):
    for k in range(1, size + 1):
        masks = fixed_masks(Partition(count), size, k)
        assert bool((masks.sum(-1) == k).all())
        hits = masks[..., 1:].sum(1)
        if count * k <= size:
            assert int(hits.max()) == 1
        if count * k >= size:
            assert int(hits.min()) >= 1
        share = masks[..., 1:].double().mean(0)
        assert torch.allclose(share, torch.full_like(share, k / size)), "every view takes every token alike"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_two_fixed_counts_have_mirrors_joint_law(size):
    for k in range(1, size + 1):
        both = [fixed_masks(views, size, k).flatten(1).T for views in (Partition(2), Mirror())]
        assert law(both[0]) == law(both[1])


@pytest.mark.parametrize("masker", ["bernoulli", "fixedcount"])
def test_two_views_have_mirrors_variance_by_enumeration(masker):
    for size in (3, 4):
        of = {v: moments(Setting(masker, v, 2, density=FITTED), toy_row(size)) for v in ("mirror", "partition")}
        for mine, mirrors in zip(of["partition"], of["mirror"], strict=True):
            assert mine == pytest.approx(mirrors, rel=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize("text", ["ppots+partition2", "ppots+fixedcount+partition2"])
def test_two_views_drawn_have_mirrors_moments(text):
    """Judged by the oracle's MIRROR, not by its partition."""
    mirror = case(text.replace("partition2", "mirror"))
    check_case(Case(text, mirror.setting), 3, n=50_000)


@pytest.mark.statistical
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("text", ["partition4", "fixedcount+partition5"])
def test_more_views_than_tokens(text, size):
    check_case(case(text), size, n=30_000)


def test_more_views_reduce_the_variance_more_than_independent_ones():
    """On a toy row whose losses grow with every mask."""
    row = toy_row(4)
    for masker in ("bernoulli", "fixedcount"):
        of = {v: moments(Setting(masker, v, 3, eps=EPS), row)[1][0] for v in ("partition", "multisample")}
        assert of["partition"] < of["multisample"]


def test_counts_of_the_drawn_views():
    t, size = torch.tensor([0.0, 0.2, 0.6, 1.0], dtype=torch.float64), torch.tensor([5, 5, 5, 7])
    assert masked_count(t, size).tolist() == [1, 1, 3, 7]


@pytest.mark.parametrize("count", [0, 1, 65])
def test_bad_number_of_views_is_refused(count):
    with pytest.raises(UserError, match="2 to 64 views"):
        Partition(count)
