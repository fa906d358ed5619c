"""The bound as an estimator: values of responses and of tokens of the same draws, and noise of a response's own."""

import pytest
import torch

from stabledllm import UserError, elbo
from stabledllm.likelihood.bound import BoundEstimator
from tests.float64 import default_float64  # noqa: F401
from tests.likelihood.models import ROWS, gradient_by_differences, gradient_of_parts, tiny

METHODS = ["lowdisc+fixedcount", "standard", "mirror", "complement"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", [None, 2])
def test_values_of_tokens_add_up_to_the_bound(method, blocks):
    model = tiny(block_size=blocks)
    how = BoundEstimator(method, 8, tokens_per_batch=20, of_tokens=True)
    draws = how.draw(model, ROWS, [5, 0, 2], seed=3, step=1)
    values = draws.values(model)
    bound = elbo(model, ROWS, method, 8, seed=3, step=1, numbers=[5, 0, 2]).value.detach()
    torch.testing.assert_close(values.sum(1), bound)
    assert values.shape == (3, 4)
    assert draws.scored.sum(1).tolist() == draws.tokens.tolist() == [3, 2, 4]
    assert (values[~draws.scored] == 0).all()
    assert draws.passes > 3
    assert draws.forward_rows == sum(forwards for _, forwards in draws.plan.run(model)) <= 8 * len(ROWS)


def test_one_token_has_what_its_own_cross_entropies_make_up():
    """With one draw the tokens that it leaves unmasked have no value, and the others' weigh alike."""
    draws = BoundEstimator("fixedcount", 1, eps=0.0, of_tokens=True).draw(tiny(), ROWS, [0, 1, 2], seed=4)
    plan = draws.plan
    k = (plan.t[:, 0, 0] * draws.tokens).ceil()
    values = draws.values(tiny())
    assert (values < 0).sum(1).tolist() == k.tolist()


@pytest.mark.parametrize("of_tokens", [False, True])
@pytest.mark.parametrize("blocks", [None, 2])
def test_parts_have_the_gradient_of_the_values(of_tokens, blocks):
    model = tiny(block_size=blocks)
    draws = BoundEstimator(budget=4, tokens_per_batch=12, of_tokens=of_tokens).draw(model, ROWS, [0, 1, 2], seed=2)
    slopes = torch.randn(draws.values(model).shape, generator=torch.Generator().manual_seed(0))
    found = gradient_of_parts(model, draws, slopes)
    along = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    assert float(found @ along) == pytest.approx(gradient_by_differences(model, draws, slopes, along), rel=1e-6)
    assert sum(1 for _ in draws.parts(model, slopes)) == draws.passes > 3


@pytest.mark.parametrize("of_tokens", [False, True])
def test_a_batch_and_one_response_have_the_same_noise(of_tokens):
    model, how = tiny(), BoundEstimator(budget=4, of_tokens=of_tokens)
    whole = how.draw(model, ROWS, [7, 3, 1], seed=0, step=2).values(model)
    for i, number in enumerate((7, 3, 1)):
        alone = how.draw(model, ROWS[i : i + 1], [number], seed=0, step=2).values(model)[0]
        torch.testing.assert_close(whole[i, : len(alone)], alone, rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(UserError, match="numbers: expected another number"):
        BoundEstimator().draw(tiny(), ROWS, [0, 1, 1], seed=0)
    with pytest.raises(UserError, match="a budget divisible by the 2 views of 'mirror', found 3"):
        BoundEstimator("mirror", 3).draw(tiny(), ROWS, [0, 1, 2], seed=0)
