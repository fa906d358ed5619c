"""MMaDA's image objective, against a plain reading of its published loop and the full enumeration of masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stabledllm.config.settings import DecomposeSettings
from stabledllm.errors import UserError
from stabledllm.lab.decompose import run_decompose
from stabledllm.loss import row_losses
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.maskers import FixedCount
from stabledllm.noise.maskers.fixed_count import count_masses
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.schedule import largest_ratio, masked_count
from stabledllm.noise.streams import Key
from tests.checks.statistics import assert_mean, assert_variance
from tests.oracle import all_masks, toy_row

COSINE = Objective(weighting="cosine")
SKEWED = Tabulated(torch.linspace(0.2, 3.0, 37))
METHODS = ("standard", "fixedcount", "ppots", "mirror", "ppots+mirror", "lowdisc+ppots", "multisample3", "partition3")


def published_counts(size: int, points: int = 200_001) -> np.ndarray:
    """Masked tokens on a fine grid of u, by MMaDA's rule."""
    u = (np.arange(points) + 0.5) / points
    return np.maximum(1, np.rint(size * np.cos(math.pi * u / 2))).astype(int)


def conditional(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square over all masks of k tokens of the masked mean CE, k = 1..P."""
    row, masks = toy_row(size), all_masks(size)
    mean = row.masked_sums[:, 0] / np.maximum(masks.sum(1), 1)
    by_count = [mean[masks.sum(1) == k] for k in range(1, size + 1)]
    return np.array([m.mean() for m in by_count]), np.array([(m**2).mean() for m in by_count])


def published_mean(size: int) -> float:
    share = np.bincount(published_counts(size), minlength=size + 1)[1:]
    return float((share / share.sum()) @ conditional(size)[0])


def draw(method: str, size: int, n: int, sampler=SKEWED, objective: Objective = COSINE):
    parsed = Method.parse(method, objective=objective)
    maskable = torch.ones(n, size, dtype=torch.bool)
    rows = Rows(torch.arange(n), n, maskable, torch.arange(size))
    return parsed.draw(Key(7, 3), rows, sampler if parsed.needs_p else Uniform())


def losses(drawn, size: int) -> torch.Tensor:
    table = torch.from_numpy(toy_row(size).table[..., 0].copy())
    code = (drawn.mask * 2 ** torch.arange(size)).sum(-1)
    nll = table[code][drawn.mask & drawn.active[..., None]]
    return row_losses(nll, drawn.mask, drawn.coefficient, drawn.active)


@pytest.mark.parametrize("size", [1, 2, 7, 256])
def test_counts_are_mmadas(size):
    u = (torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001
    found = masked_count(1 - u, torch.tensor(size), "cosine").numpy()
    published = np.maximum(1, np.rint(size * np.cos(math.pi * u.numpy() / 2)))
    np.testing.assert_array_equal(found, published)


@pytest.mark.parametrize("counts", ["linear", "cosine"])
def test_cells_end_where_the_count_changes(counts):
    size, k = torch.tensor(9), torch.arange(1, 9)
    edge = largest_ratio(k, size, counts)
    assert masked_count(edge - 1e-9, size, counts).tolist() == k.tolist()
    assert masked_count(edge + 1e-9, size, counts).tolist() == (k + 1).tolist()
    assert largest_ratio(torch.tensor([0, 9]), size, counts).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("size", [1, 3, 6])
@pytest.mark.parametrize("sampler", [Uniform(), SKEWED], ids=["uniform", "skewed"])
def test_every_density_has_the_published_mean(size, sampler):
    """Summed over the counts with the density's own masses: exact but for the grid behind the published mean."""
    k = torch.arange(1, size + 1)
    edges = largest_ratio(torch.arange(size + 1), torch.full((size + 1,), size), "cosine")
    middle = (edges[1:] + edges[:-1]) / 2
    rows = Rows(torch.arange(size), size, torch.ones(size, size, dtype=torch.bool), torch.arange(size))
    drawn = Method.parse("standard", objective=COSINE).draw_at(middle, Key(0, 0), rows, sampler)
    assert drawn.mask.sum((1, 2)).tolist() == k.tolist()
    coefficient = drawn.coefficient.amax((1, 2))
    mass = torch.diff(sampler.cdf(edges))
    found = float((mass * coefficient * k) @ torch.from_numpy(conditional(size)[0]))
    assert found == pytest.approx(published_mean(size), rel=1e-4)
    assert float(mass @ drawn.weight) == pytest.approx(1.0, abs=1e-12)


def test_under_uniform_t_it_is_the_masked_mean():
    drawn = draw("standard", 6, 200)
    each = drawn.coefficient[:, 0].amax(1)
    torch.testing.assert_close(each, 1.0 / drawn.mask[:, 0].sum(1).double())
    assert drawn.weight.tolist() == pytest.approx([1.0] * 200)


@pytest.mark.statistical
@pytest.mark.parametrize("method", METHODS)
def test_draws_have_the_published_mean(method):
    size = 6
    drawn = draw(method, size, 20_000)
    assert_mean(losses(drawn, size), published_mean(size), method)


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", [Uniform(), SKEWED], ids=["uniform", "skewed"])
def test_draws_have_the_enumerated_variance(sampler):
    size = 6
    uniform, mass = count_masses(Uniform(), size, "cosine"), count_masses(sampler, size, "cosine")
    _, square = conditional(size)
    expected = float((uniform**2 / mass) @ torch.from_numpy(square)) - published_mean(size) ** 2
    assert_variance(losses(draw("ppots", size, 20_000, sampler), size), expected)


def test_mirrored_views_have_k_tokens_each_and_overlap_as_little_as_they_can():
    size = 7
    drawn = draw("ppots+mirror", size, 500)
    k = drawn.mask.sum(-1)
    assert (k[:, 0] == k[:, 1]).all()
    both = (drawn.mask[:, 0] & drawn.mask[:, 1]).sum(1)
    assert both.tolist() == (2 * k[:, 0] - size).clamp(min=0).tolist()


def test_what_predicts_the_variance_knows_the_weights():
    size, masker = 8, FixedCount("cosine")
    density = masker.weighs_by(SKEWED, size)
    middle = largest_ratio(torch.arange(size + 1), torch.full((size + 1,), size), "cosine")
    middle = (middle[1:] + middle[:-1]) / 2
    expected = count_masses(Uniform(), size, "cosine") / count_masses(SKEWED, size, "cosine")
    torch.testing.assert_close(density.weight(middle), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["complement", "isad", "clipped", "ppots-gradient", "autoregressive"])
def test_parts_of_the_bound_alone_are_refused(name):
    with pytest.raises(UserError, match="'cosine' contradict"):
        Method.parse(name, objective=COSINE)


def test_a_power_is_refused():
    with pytest.raises(UserError, match="expected none for weighting 'cosine', found 1"):
        Objective(weighting="cosine", power=1.0)


def test_without_a_list_methods_with_a_meaning_are_compared(tmp_path):
    tree = {"out": str(tmp_path), "rows": 4, "rates": 2, "steps": 4, "objective": {"weighting": "cosine"}}
    tree |= {"probe": {"rows": 4, "rates": 4, "masks": 2, "starts": 1}, "forwards": 2, "masks": 2}
    names = [entry["method"] for entry in run_decompose(DecomposeSettings(**tree), lambda _: None)["methods"]]
    assert {"standard", "ppots", "mirror", "lowdisc+ppots+fixedcount"} <= set(names)
    assert not {"clipped", "lowdisc+complement", "lowdisc+ppots-head+fixedcount"} & set(names)


def test_decomposition_and_comparison(tmp_path):
    tree = {"out": str(tmp_path), "rows": 6, "rates": 4, "steps": 4, "objective": {"weighting": "cosine"}}
    tree |= {"probe": {"rows": 6, "rates": 4, "masks": 2, "starts": 2}, "methods": ["ppots+mirror"], "forwards": 4}
    record = run_decompose(DecomposeSettings(**tree), lambda _: None)
    assert [entry["method"] for entry in record["methods"]] == ["standard", "ppots+mirror"]
    # A mean over masked tokens is a cross-entropy: it is not blown up where few are masked, as the bound is.
    assert 0 < record["loss"]["mean"]["value"] < math.log(264) * 2
    assert record["loss"]["mask_pattern"]["value"] > 0
    with pytest.raises(UserError, match=r"gradient=true .* write gradient=false"):
        run_decompose(DecomposeSettings(**tree | {"gradient": True}), lambda _: None)
