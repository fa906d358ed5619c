"""Every number is a function of (seed, step, row position, token index, stream) and of nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key, Stream
from tests.checks.noise import check_uniform
from tests.checks.statistics import TEST_FAILURE_RATE, assert_mean

KEY = Key(seed=2**63 + 12345, step=7)
COMBINATIONS = (
    "standard",
    "mirror",
    "multisample3",
    "strats+ppots+mirror",
    "lowdisc+fixedcount+mirror",
    "isad+mirror",
    "partition",
    "lowdisc+fixedcount+partition4",
    "ppots+complement",
)


def step_rows(n: int = 8, length: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """(maskable, delimiter) of a step with responses of unequal length."""
    maskable = torch.arange(length)[None] < (torch.arange(n)[:, None] % 5 + 3)
    return maskable, maskable & (torch.arange(length) % 3 == 0)


def draw(text: str, position: torch.Tensor, n: int = 8, extra: int = 0):
    """The draw of some rows of the step, padded by ``extra`` further positions."""
    maskable, delimiter = (torch.nn.functional.pad(x[position], (0, extra)) for x in step_rows(n))
    method = Method.parse(text)
    rows = Rows(position, n, maskable, torch.arange(maskable.shape[1]), delimiter)
    return method.draw(KEY, rows, method.sampler(Tabulated([2.0, 1.0, 1.5])))


@pytest.mark.parametrize("text", COMBINATIONS)
@pytest.mark.parametrize("parts", [[1] * 8, [4, 4], [2, 6], [3, 3, 2]])
def test_does_not_depend_on_how_rows_are_split(text, parts):
    whole = draw(text, torch.arange(8))
    for position in torch.arange(8).split(parts):
        part = draw(text, position)
        for name in ("t", "weight", "mask", "coefficient", "active"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[position]), name


@pytest.mark.parametrize("text", COMBINATIONS)
def test_does_not_depend_on_order_or_padding(text):
    whole, order = draw(text, torch.arange(8)), torch.tensor([5, 0, 7, 2, 6, 1, 3, 4])
    shuffled = draw(text, order, extra=6)
    assert torch.equal(shuffled.t, whole.t[order])
    assert torch.equal(shuffled.mask[..., :-6], whole.mask[order])
    assert torch.equal(shuffled.coefficient[..., :-6], whole.coefficient[order])
    assert not bool(shuffled.mask[..., -6:].any())


def test_streams_views_steps_and_seeds_are_unrelated():
    rows, tokens = torch.arange(400), torch.arange(50)
    base = KEY.token_uniforms(Stream.MASK, rows, tokens)
    others = {
        "stream": KEY.token_uniforms(Stream.DATA, rows, tokens),
        "view": KEY.token_uniforms(Stream.MASK, rows, tokens, view=1),
        "step": Key(KEY.seed, KEY.step + 1).token_uniforms(Stream.MASK, rows, tokens),
        "seed": Key(KEY.seed + 1, KEY.step).token_uniforms(Stream.MASK, rows, tokens),
        "high word of the seed": Key(KEY.seed ^ (1 << 40), KEY.step).token_uniforms(Stream.MASK, rows, tokens),
        "row": KEY.token_uniforms(Stream.MASK, rows + 400, tokens),
        "token": KEY.token_uniforms(Stream.MASK, rows, tokens + 52),
    }
    for what, other in others.items():
        assert not bool((other == base).any()), what
        assert_mean((base - 0.5).flatten() * (other - 0.5).flatten(), 0.0, f"covariance across {what}")


def test_the_mask_stream_does_not_move_t():
    """The same rows get the same t whatever the masker and the number of views draw."""
    t = draw("standard", torch.arange(8)).t
    for text in ("multisample3", "mirror", "fixedcount"):
        assert torch.equal(draw(text, torch.arange(8)).t, t)


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=30, unique=True),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_shared_and_own_token_indices_agree(tokens, rows):
    """(L,) and (B, L) indices give the same bits, also for left-padded or packed rows."""
    index, position = torch.tensor(tokens), torch.tensor(rows)
    shared = KEY.token_uniforms(Stream.MASK, position, index)
    own = KEY.token_uniforms(Stream.MASK, position, index.expand(len(rows), -1))
    assert torch.equal(shared, own)


@pytest.mark.statistical
def test_uniformity():
    check_uniform(KEY.row_uniforms(Stream.RATE, torch.arange(200_000)), "rows")
    check_uniform(KEY.token_uniforms(Stream.MASK, torch.arange(2000), torch.arange(100)), "tokens")
    by_step = torch.stack([Key(1, s).row_uniforms(Stream.RATE, torch.zeros(1, dtype=torch.long)) for s in range(5000)])
    check_uniform(by_step, "steps")


def test_uniforms_are_never_0_or_1_and_mirror_exactly():
    u = KEY.token_uniforms(Stream.MASK, torch.arange(3000), torch.arange(100))
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    assert torch.equal(1 - (1 - u), u)


def test_permutations_are_uniform():
    n, draws = 4, 4800
    seen = torch.stack([Key(3, s).permutation(Stream.PERMUTATION, n, torch.device("cpu")) for s in range(draws)])
    assert torch.equal(seen.sort(1).values, torch.arange(n).expand(draws, -1))
    code = (seen * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > TEST_FAILURE_RATE
