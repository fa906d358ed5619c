"""Draws of views: a response's own noise, one backward for each pass, blocks, and what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch

from stabledllm import UserError
from stabledllm.data.rows import TokenRow
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO
from stabledllm.likelihood.responses import Responses
from stabledllm.models.loading import load_model
from stabledllm.noise.blocks import Blocks
from tests.fakes.hub_models import write_dream, write_llada
from tests.float64 import default_float64  # noqa: F401
from tests.likelihood.models import MASK, ROWS, gradient_by_differences, gradient_of_parts, tiny

NUMBERS = [7, 3, 1]
HOW = {
    "espo": ESPO(2, tokens_per_forward=12, strata=4),
    "coupled": Coupled(1, True, 12),
    "coupled of responses": Coupled(2, False, 12),
    "one-step": OneStep(2, True, 12, prompt_share=0.5),
    "unigrpo": UniGRPO(2, True, 12, inner=3),
}


def without_prompts(name: str):
    return OneStep(2, True, 12, prompt_share=0.0) if name == "one-step" else HOW[name]


@pytest.mark.parametrize("name", HOW)
def test_the_noise_of_a_response_is_its_own(name):
    """Alone, in another order, behind more padding, in other passes: the same masks, and the same values."""
    model, how = tiny(), HOW[name]
    whole = how.draw(model, ROWS, NUMBERS, seed=5, step=4)
    values = whole.values(model)
    for i, number in enumerate(NUMBERS):
        alone = how.draw(model, ROWS[i : i + 1], [number], seed=5, step=4)
        length = alone.mask.shape[2]
        assert torch.equal(alone.mask[0], whole.mask[i, :, :length])
        assert torch.equal(alone.weight[0], whole.weight[i, :, :length])
        found = alone.values(model)[0]
        torch.testing.assert_close(values[i, : len(found)], found, rtol=0, atol=1e-12)
    turned = how.draw(model, ROWS[::-1], NUMBERS[::-1], seed=5, step=4).values(model)
    torch.testing.assert_close(turned.flip(0), values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", HOW)
def test_the_noise_follows_seed_step_and_number_and_no_model(name):
    row, how = TokenRow(list(range(1, 9)) * 4, prompt_length=4), HOW[name]
    drawn = how.draw(tiny(), [row], [0], seed=0, step=0).mask
    assert torch.equal(how.draw(tiny(1), [row], [0], seed=0, step=0).mask, drawn)
    for number, seed, step in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(how.draw(tiny(), [row], [number], seed=seed, step=step).mask, drawn)


@pytest.mark.parametrize("name", HOW)
@pytest.mark.parametrize("blocks", [None, 2])
def test_parts_have_the_gradient_of_the_values(name, blocks):
    model = tiny(block_size=blocks)
    draws = without_prompts(name).draw(model, ROWS, NUMBERS, seed=2, step=1)
    slopes = torch.randn(draws.values(model).shape, generator=torch.Generator().manual_seed(0))
    found = gradient_of_parts(model, draws, slopes)
    along = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    assert float(found @ along) == pytest.approx(gradient_by_differences(model, draws, slopes, along), rel=1e-6)
    assert sum(1 for _ in draws.parts(model, slopes)) == draws.passes >= 3


@pytest.mark.parametrize("name", ["espo", "coupled", "one-step"])
@pytest.mark.parametrize("blocks", [None, 2])
def test_values_of_tokens_add_up_to_the_response_s(name, blocks):
    model, how = tiny(block_size=blocks), without_prompts(name)
    whole, tokens = (type(how)(**(vars(how) | {"of_tokens": each})) for each in (False, True))
    drawn = [each.draw(model, ROWS, NUMBERS, seed=2, step=1) for each in (whole, tokens)]
    torch.testing.assert_close(drawn[0].values(model)[:, 0], drawn[1].values(model).sum(1))
    assert drawn[0].scored is None
    assert drawn[1].scored.sum(1).tolist() == drawn[1].tokens.tolist() == [3, 2, 4]
    assert drawn[0].forward_rows == drawn[1].forward_rows


def test_draws_without_any_mask_make_a_pass_of_no_value():
    """Some seed masks nothing; the model runs nevertheless, as those of other ranks do, and has a gradient of 0."""
    model, how = tiny(), UniGRPO(of_tokens=True)
    row = [TokenRow([3, 1], prompt_length=1)]
    draws = next(d for d in (how.draw(model, row, [n], seed=0) for n in itertools.count()) if not d.forward_rows)
    assert draws.values(model).tolist() == [[0.0]]
    assert draws.scored.tolist() == [[False]]
    assert draws.passes == 1
    assert not gradient_of_parts(model, draws, torch.ones(1, 1)).any()


def block_bound(model, row: TokenRow, size: int) -> float:
    """The bound of decoding in blocks, each block's masks enumerated beside its clean past."""
    ids = torch.tensor(row.input_ids)
    maskable = torch.zeros(1, len(ids), dtype=torch.bool)
    maskable[:, row.prompt_length :] = True
    block_ids = Blocks.of(model, size).ids(maskable, torch.ones_like(maskable))
    result = 0.0
    for start in range(row.prompt_length, len(row), size):
        block = list(range(start, min(start + size, len(row))))
        for k in range(1, len(block) + 1):
            values = []
            for chosen in map(list, itertools.combinations(block, k)):
                mask = torch.zeros_like(maskable)
                mask[0, chosen] = True
                noisy = torch.where(mask, MASK, ids)
                with torch.no_grad():
                    nll = model(noisy, torch.ones_like(mask), selected=mask, targets=ids[None], block_ids=block_ids).nll
                values.append(-float(nll.sum()) / k)
            result += float(np.mean(values))
    return result


def test_espo_is_the_bound_of_decoding_in_blocks_too():
    """Every count and every order of four tokens, equally likely: the mean is exact, and so is that of our method."""
    model, row = tiny(block_size=2), ROWS[2]
    orders = list(itertools.permutations(range(4)))
    rows = [row] * (5 * len(orders))

    class Listed(ESPO):
        def views(self, given):
            masks = torch.zeros_like(given.maskable)
            counts = torch.arange(5).repeat_interleave(len(orders))
            for i, count in enumerate(counts.tolist()):
                masks[i, [row.prompt_length + place for place in orders[i % len(orders)][:count]]] = True
            rest = given.maskable & ~masks
            return [(m, (5 / 2 / m.sum(1).clamp(min=1).double())[:, None]) for m in (masks, rest)]

    draws = Listed().draw(model, rows, range(len(rows)), seed=0)
    exact = block_bound(model, row, 2)
    assert float(draws.values(model).mean()) == pytest.approx(exact)
    whole = tiny()  # the same weights without blocks have another bound
    assert not math.isclose(float(Listed().draw(whole, rows, range(len(rows)), seed=0).values(whole).mean()), exact)


def test_refusals():
    model = tiny()
    with pytest.raises(UserError, match="found masks of the prompt too"):
        OneStep(prompt_share=0.9).draw(tiny(block_size=2), ROWS, NUMBERS, seed=0)
    with pytest.raises(UserError, match="numbers: expected another number"):
        ESPO().draw(model, ROWS, [0, 1, 1], seed=0)
    with pytest.raises(UserError, match="expected response tokens in every row, found none in row 1"):
        Coupled().draw(model, [ROWS[0], TokenRow([1, 2], prompt_length=2)], [0, 1], seed=0)
    with pytest.raises(UserError, match="step: expected a whole number of at least 0, found -1"):
        UniGRPO().draw(model, ROWS, NUMBERS, seed=0, step=-1)


def test_the_prompt_and_the_responses_tokens_are_told_apart():
    row = TokenRow([1, 2, 3, 4, 5, 6], prompt_length=2, given=[3])  # a token that is given within the response
    given = Responses.of(tiny(), [row, ROWS[1]], [0, 1], seed=0)
    assert given.prompt.long().tolist() == [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert given.maskable.long().tolist() == [[0, 0, 1, 0, 1, 1], [0, 1, 1, 0, 0, 0]]
    values = BoundEstimator(budget=2, of_tokens=True).draw(tiny(), [row], [0], seed=0).values(tiny())
    assert values.shape == (1, 3)


@pytest.mark.parametrize(("write", "family"), [(write_dream, "dream"), (write_llada, "llada")])
def test_published_families_give_the_log_probabilities_of_their_logits(tmp_path, write, family):
    """A model that predicts the token behind a position, and a head that sees the scored positions alone."""
    loaded = load_model(str(write(tmp_path / family)), "float32")
    rows = [TokenRow([5, 6, 7, 8, 9, 10], prompt_length=2), TokenRow([11, 12, 13], prompt_length=1)]
    draws = Coupled(1, True, 16).draw(loaded.model, rows, [0, 1], seed=3)
    values = draws.values(loaded.model)
    for i, row in enumerate(rows):
        expected = torch.zeros(row.response_length)
        for mask, weight in zip(draws.mask[i, :, : len(row)], draws.weight[i, :, : len(row)], strict=True):
            noisy = torch.where(mask, loaded.mask_id, torch.tensor(row.input_ids))[None]
            with torch.no_grad():
                logits = loaded.model(noisy, torch.ones_like(noisy, dtype=torch.bool)).logits[0].log_softmax(-1)
            logs = logits.gather(1, torch.tensor(row.input_ids)[:, None])[:, 0].double()
            expected += (weight * logs)[row.prompt_length :]
        torch.testing.assert_close(values[i, : row.response_length].double(), expected, rtol=1e-4, atol=1e-4)
