"""Published estimators, draw by draw: their formulas on the very masks, and the parts of methods in them."""

import pytest
import torch

from stabledllm.data.rows import TokenRow, collate
from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO
from stabledllm.likelihood.responses import Responses
from stabledllm.noise.methods import Key, Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.parts import MethodOptions
from tests.float64 import default_float64  # noqa: F401
from tests.likelihood import enumerated
from tests.likelihood.models import ROWS, tiny

NUMBERS = [4, 11, 2]
BOUND = Objective(eps=0.0)


def hidden_by(draws) -> list[list[frozenset[int]]]:
    """The positions that each view of each response hides."""
    return [[frozenset(view.nonzero()[:, 0].tolist()) for view in response] for response in draws.mask]


def features(model) -> list:
    return [enumerated.log_probabilities(model, row) for row in ROWS]


def noise_of(numbers) -> Rows:
    """The rows as the forward process of methods takes them."""
    batch = collate(ROWS, 9)
    length = torch.arange(batch["input_ids"].shape[1])
    return Rows(torch.tensor(numbers), 100, batch["maskable"], length)


def part(name: str, t: torch.Tensor, seed: int, step: int, options: MethodOptions | None = None):
    """A method's draw at given mask ratios, from the key that estimators have too."""
    method = Method.parse(name, options, BOUND)
    return method.draw_at(t.double(), Key(seed, step), noise_of(NUMBERS), method.density)


@pytest.mark.parametrize("pairs", [1, 3])
def test_espo_is_its_formula_on_the_masks_drawn(pairs):
    model = tiny()
    draws = ESPO(pairs).draw(model, ROWS, NUMBERS, seed=1, step=2)
    values = draws.values(model)
    for feature, row, hidden, value in zip(features(model), ROWS, hidden_by(draws), values, strict=True):
        size, expected = row.response_length, 0.0
        for m, rest in zip(hidden[::2], hidden[1::2], strict=True):
            assert m | rest == set(enumerated.places(row))
            assert not m & rest
            expected += (size + 1) / len(m) * enumerated.total(feature, m) / 2 if m else 0.0
            expected += (size + 1) / len(rest) * enumerated.total(feature, rest) / 2 if rest else 0.0
        assert float(value) == pytest.approx(expected / pairs)


@pytest.mark.parametrize("draws_of_each", [1, 2])
def test_coupled_is_its_formula_on_the_masks_drawn(draws_of_each):
    """Token by token: half of everything masked, half of the one of two views that hides it, over its probability."""
    model = tiny()
    draws = Coupled(draws_of_each, of_tokens=True).draw(model, ROWS, NUMBERS, seed=1, step=2)
    values, weight = draws.values(model), draws.weight
    assert draws.scored.sum(1).tolist() == [3, 2, 4]
    for b, (feature, row, hidden) in enumerate(zip(features(model), ROWS, hidden_by(draws), strict=True)):
        everywhere = frozenset(enumerated.places(row))
        assert hidden[0] == everywhere
        for place, i in enumerate(sorted(everywhere)):
            expected = feature(everywhere)[i] / 2
            for pair in range(draws_of_each):
                m, rest = hidden[1 + 2 * pair : 3 + 2 * pair]
                assert m == everywhere - rest
                # What t was is read from any weight: 1 / t for the first view, 1 / (1 - t) for the second.
                drawn = [1 / (2 * draws_of_each * float(weight[b, 1 + 2 * pair + k].max())) for k, of in
                         enumerate((m, rest)) if of]  # fmt: skip
                assert all(0.2 <= t <= 0.8 for t in drawn)
                assert len(drawn) < 2 or sum(drawn) == pytest.approx(1)
                mine = m if i in m else rest
                expected += feature(mine)[i] / drawn[-1 if mine is rest else 0] / 2 / draws_of_each
            assert float(values[b, place]) == pytest.approx(expected)
    assert draws.forward_rows <= (1 + 2 * draws_of_each) * len(ROWS)


@pytest.mark.parametrize("draws_of_each", [1, 4])
def test_one_step_is_its_formula_on_the_masks_drawn(draws_of_each):
    model = tiny()
    draws = OneStep(draws_of_each, of_tokens=True, prompt_share=0.5).draw(model, ROWS, NUMBERS, seed=1, step=2)
    values, prompts = draws.values(model), set()
    for feature, row, hidden, value in zip(features(model), ROWS, hidden_by(draws), values, strict=True):
        where = enumerated.places(row)
        assert all(m >= set(where) for m in hidden)
        expected = [sum(feature(m)[i] for m in hidden) / len(hidden) for i in where]
        torch.testing.assert_close(value[: len(where)], torch.tensor(expected))
        assert (value[len(where) :] == 0).all()
        prompts |= {m - set(where) for m in hidden}
    assert len(prompts) > 1  # some draws hide tokens of the prompt


@pytest.mark.parametrize("draws_of_each", [1, 3])
@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_unigrpo_is_its_formula_on_the_masks_drawn(draws_of_each, step):
    model = tiny()
    whole, tokens = (
        UniGRPO(draws_of_each, each, inner=3).draw(model, ROWS, NUMBERS, seed=1, step=step) for each in (False, True)
    )
    masked_means, by_token = whole.values(model), tokens.values(model)
    for b, (feature, row, hidden) in enumerate(zip(features(model), ROWS, hidden_by(whole), strict=True)):
        means = [enumerated.total(feature, m) / len(m) if m else 0.0 for m in hidden]
        assert float(masked_means[b]) / row.response_length == pytest.approx(sum(means) / len(means))
        for place, i in enumerate(enumerated.places(row)):
            own = [feature(m)[i] for m in hidden if i in m]
            assert bool(tokens.scored[b, place]) == bool(own)
            assert float(by_token[b, place]) == pytest.approx(sum(own) / len(own) if own else 0.0)
        if step % 3 == 2:
            assert all(m == set(enumerated.places(row)) for m in hidden)  # the last inner step masks everything


def test_the_masks_of_unigrpo_grow_with_the_inner_steps_and_are_drawn_anew():
    many = [ROWS[2]] * 200
    masks = [UniGRPO(inner=3).draw(tiny(), many, range(200), seed=0, step=step).mask[:, 0] for step in range(6)]
    shares = [float(mask[:, 2:].double().mean()) for mask in masks]
    assert shares[0] < shares[1] < shares[2] == shares[5] == 1.0
    assert not torch.equal(masks[0], masks[3])
    assert not (masks[0] <= masks[1]).all()  # a mask of its own, not the last one grown


def test_the_ratio_of_unigrpo_starts_once_in_a_round():
    """Steps 3 to 5 are a round of three: in its second the ratio is half way from the uniform of its first to 1."""
    many = [ROWS[2]] * 50
    found = UniGRPO(inner=3).draw(tiny(), many, range(50), seed=0, step=4).mask[:, 0]
    first, second = (Responses.of(tiny(), many, range(50), seed=0, step=step) for step in (3, 4))
    t = 0.5 + 0.5 * first.uniform()
    assert torch.equal(found, (second.uniforms() < t[:, None]) & second.maskable)


def test_espo_stratifies_the_counts_of_a_group_and_keeps_groups_apart():
    row = TokenRow([*range(1, 9), 1, 2, 3, 4], prompt_length=4)  # 8 tokens: counts 0 to 8
    draws = ESPO(2, strata=3).draw(tiny(), [row] * 30, range(30), seed=0)
    for pair in range(2):
        counts = draws.mask[:, 2 * pair].sum(1).view(10, 3).sort(1).values
        gaps = torch.cat((counts.diff(), 9 + counts[:, :1] - counts[:, -1:]), 1)
        assert (gaps == 3).all()
        assert len(set(counts[:, 0].tolist())) > 1


def test_espo_within_its_counts_is_complement_but_for_a_constant():
    """The same order of tokens and count: P + 1 stands where ``complement`` has P; it gives 0 and P less weight."""
    draws = ESPO().draw(tiny(), ROWS, NUMBERS, seed=1, step=2)
    size = draws.tokens
    k = draws.mask[:, 0].sum(1)
    inside = (k > 0) & (k < size)
    assert inside.any()
    same = part("complement", (k.double() - 0.5).clamp(min=0.1) / size, seed=1, step=2)
    assert torch.equal(draws.mask[inside], same.mask[inside])
    expected = same.coefficient * size[:, None, None] / 2 * ((size + 1) / size)[:, None, None]
    torch.testing.assert_close(draws.weight[inside], expected[inside])


def test_the_views_of_coupled_are_clipped_at_t_and_its_mirror():
    draws = Coupled().draw(tiny(), ROWS, NUMBERS, seed=1, step=2)
    t = 0.2 + 0.6 * Key(1, 2).row_uniforms(1, torch.tensor(NUMBERS))
    options = MethodOptions(clip_low=0.2, clip_high=0.8)
    one, other = part("clipped", t, 1, 2, options), part("clipped+mirror", 1 - t, 1, 2, options)
    for view, of, same in ((1, 0, one), (2, 1, other)):
        assert torch.equal(draws.mask[:, view], same.mask[:, of])
        torch.testing.assert_close(draws.weight[:, view], same.coefficient[:, of] * draws.tokens[:, None] / 2)


def test_one_step_without_masks_of_the_prompt_is_standard_at_t_1():
    draws = OneStep(prompt_share=0.0).draw(tiny(), ROWS, NUMBERS, seed=1, step=2)
    same = part("standard", torch.ones(3), 1, 2)
    assert torch.equal(draws.mask, same.mask)
    torch.testing.assert_close(draws.weight, same.coefficient * draws.tokens[:, None, None])


def test_unigrpo_has_the_weights_of_fixedcount_at_its_counts_and_the_masks_of_standard():
    draws = UniGRPO().draw(tiny(), ROWS, NUMBERS, seed=1, step=2)
    t = Key(1, 2).row_uniforms(1, torch.tensor(NUMBERS))
    assert torch.equal(draws.mask, part("standard", t, 1, 2).mask)
    k = draws.mask[:, 0].sum(1)
    same = part("fixedcount", (k.double() - 0.5).clamp(min=0.1) / draws.tokens, 1, 2)
    given = k > 0
    weights = (draws.weight.amax(2), same.coefficient.amax(2) * draws.tokens[:, None])
    torch.testing.assert_close(weights[0][given], weights[1][given])
