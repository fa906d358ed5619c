"""What a row is charged in forwards is what the forward pass counts: every method, P, eps, objective and block size."""

from __future__ import annotations

import pytest
import torch

from stabledllm.noise.blocks import Blocks, Units, mean_forwards_in_blocks
from stabledllm.noise.densities import Tabulated, TSampler
from stabledllm.noise.methods import Method, MethodOptions, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.checks.statistics import assert_mean

SKEWED = Tabulated([3.0, 1.0, 0.7, 0.2, 0.1])
METHODS = [
    "standard", "ppots", "mirror", "ppots+mirror", "multisample3", "partition5", "fixedcount",
    "ppots+fixedcount+mirror",
    "fixedcount+partition4", "complement", "ppots+complement", "isad", "isad-exact+mirror", "clipped+mirror",
    "lowdisc+complement", "strats+ppots+complement",
]  # fmt: skip
OBJECTIVES = [Objective(eps=1e-3), Objective(eps=0.3), Objective(eps=0.0), Objective("unweighted"), Objective("cosine")]
RATES = 2**12


def counted(method: Method, sampler: TSampler, size: int) -> float:
    """Forward rows over rows, for rows at the quantiles of their density."""
    rows = Rows(
        position=torch.arange(RATES),
        step_rows=RATES,
        maskable=torch.ones(RATES, size, dtype=torch.bool),
        token_index=torch.arange(size),
        delimiter=torch.zeros(RATES, size, dtype=torch.bool),
    )
    t = sampler.icdf((torch.arange(RATES, dtype=torch.float64) + 0.5) / RATES)
    draw = method.draw_at(t, Key(0, 0), rows, sampler)
    return len(draw.noisy(torch.zeros(RATES, size, dtype=torch.long), 1)[0]) / RATES


@pytest.mark.parametrize("below", [1.0, 0.3])
@pytest.mark.parametrize("name", METHODS)
def test_charged_is_counted(name, below):
    options = MethodOptions(mirror_below=below)
    for objective in OBJECTIVES:
        if not Method.parse(name, options).takes(objective):
            continue
        method = Method.parse(name, options, objective)
        sampler = method.sampler(SKEWED)
        for size in (1, 2, 3, 7):
            charged = method.views.mean_forwards(sampler, torch.tensor([size]))
            assert charged == pytest.approx(counted(method, sampler, size), abs=1.01 / RATES), (
                objective,
                size,
            )


def test_rows_of_several_lengths_are_charged_their_mean():
    """1 + P(k < P): 1, 3/2 and 7/4 forwards for 1, 2 and 4 tokens under uniform t."""
    method = Method.parse("complement")
    assert method.views.mean_forwards(method.sampler(), torch.tensor([1, 2, 4])) == pytest.approx((1 + 1.5 + 1.75) / 3)
    assert method.views.mean_forwards(Tabulated([1.5, 0.5]), torch.tensor([2])) == pytest.approx(1.75)
    t = torch.tensor([0.4, 0.6, 0.9], dtype=torch.float64)
    assert method.views.cost(t, torch.tensor([1, 2, 4])).tolist() == pytest.approx([5 / 3, 4 / 3, 1.0])


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "below"), [("mirror", 0.3), ("ppots+mirror", 0.6), ("complement", 1.0), ("mirror", 1.0)]
)
@pytest.mark.parametrize("blocks", [Blocks(1), Blocks(2), Blocks(3), Blocks(50), Blocks(3, from_start=True)], ids=str)
def test_blocks_share_the_forward_of_a_view(name, below, blocks):
    method, sizes = Method.parse(name, MethodOptions(mirror_below=below)), torch.tensor([2, 5, 7]).repeat(3000)
    prompt, place = torch.tensor([4, 3, 2]).repeat(3000)[:, None], torch.arange(11)
    maskable = (place >= prompt) & (place < prompt + sizes[:, None])
    rows = Rows(torch.arange(len(sizes)), len(sizes), maskable, place)
    counts = blocks.counts(maskable)
    units = Units.of(rows, blocks, counts.cumsum(0) - counts, int(counts.sum()))
    sampler = method.sampler(SKEWED)
    draw = units.draw(method, Key(3, 1), sampler)
    charged = mean_forwards_in_blocks(method.views, sampler, sizes, blocks.size, blocks.lead(maskable))
    each = draw.active.sum(1).double()
    if float(each.std()) == 0:
        assert charged == pytest.approx(float(each.mean()))
    else:
        assert_mean(each, charged, "forwards of a row")
