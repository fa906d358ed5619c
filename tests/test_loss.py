"""The row loss and the step's mean: exact normalisation, whatever the split into micro-batches."""

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.loss import reduce_loss, row_losses
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.checks.loss import STEP, check_dropped_nowhere, check_split, step_of
from tests.checks.moments import features, rows_of, sample
from tests.checks.statistics import assert_mean
from tests.oracle import moments, toy_row
from tests.statistical.cases import case


def test_row_loss_written_out():
    """One row, two views: 1/2 (sum over view 1 + sum over view 2) of coefficient x CE, in row-major order."""
    mask = torch.tensor([[[True, False, True], [False, False, True]]])
    coefficient = torch.tensor([[[2.0, 9.0, 3.0], [9.0, 9.0, 5.0]]]).double() * mask
    nll = torch.tensor([1.0, 10.0, 100.0]).double()
    both = row_losses(nll, mask, coefficient, torch.tensor([[True, True]]))
    assert both.tolist() == [(2 + 30 + 500) / 2]
    first_alone = row_losses(nll[:2], mask, coefficient, torch.tensor([[True, False]]))
    assert first_alone.tolist() == [32.0]


def test_row_without_a_mask_is_0_and_has_a_gradient():
    nll = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    loss = row_losses(nll, torch.zeros(2, 1, 3).bool(), torch.zeros(2, 1, 3).double(), torch.ones(2, 1).bool())
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("normalization", ["row", "token"])
@pytest.mark.parametrize("parts", [[8], [4, 4], [1] * 8, [3, 5]])
def test_micro_batches_add_up_to_the_steps_mean(normalization, parts):
    check_split(normalization, parts)


def test_rows_without_a_mask_stay_in_the_mean():
    check_dropped_nowhere()


def test_rows_of_weight_0_count_nowhere():
    """Repeats that only even out ranks."""
    loss, weight = torch.tensor([1.0, 2.0, 50.0]), torch.tensor([1.0, 1.0, 0.0])
    assert float(reduce_loss(loss, weight, weight.sum())) == 1.5


def test_token_normalisation_weighs_rows_by_their_maskable_tokens():
    assert Objective(normalization="token").row_weight(STEP.maskable).tolist() == STEP.maskable.sum(1).tolist()
    assert Objective().row_weight(STEP.maskable).tolist() == [1.0] * len(STEP.maskable)


@pytest.mark.statistical
def test_token_normalised_step_has_the_token_weighted_objective():
    """Steps of one row of 2 and one of 4 tokens: (2 g_2 + 4 g_4) / 6."""
    short, long = (sample(case("ppots+mirror"), toy_row(size), 100_000, seed=size) for size in (2, 4))
    weights = Objective(normalization="token").row_weight(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool())
    steps = (short * weights[0] + long * weights[1]) / weights.sum()
    exact = [moments(case("ppots+mirror").setting, toy_row(size))[0] for size in (2, 4)]
    for f, expected in enumerate((2 * exact[0] + 4 * exact[1]) / 6):
        assert_mean(steps[:, f], expected, f"feature {f}")


def test_gradient_goes_through_the_row_loss_as_autograd_sees_it():
    """Autograd through ``row_losses`` gives the coefficients themselves."""
    draw = Method.parse("mirror").draw(Key(1, 1), rows_of(toy_row(4), 6), Uniform())
    nll = torch.rand(int(draw.mask.sum()), dtype=torch.float64, requires_grad=True)
    row_losses(nll, draw.mask, draw.coefficient, draw.active).sum().backward()
    assert torch.allclose(nll.grad, draw.coefficient[draw.mask] / 2)


def test_float32_losses_stay_float32():
    draw = Method.parse("standard").draw(Key(1, 1), rows_of(toy_row(4), 6), Uniform())
    nll = torch.rand(int(draw.mask.sum()), dtype=torch.float32)
    assert row_losses(nll, draw.mask, draw.coefficient, draw.active).dtype == torch.float32


@pytest.mark.parametrize("kwargs", [{"weighting": "elbow"}, {"normalization": "tokens"}])
def test_unknown_objectives_are_one_sentence(kwargs):
    with pytest.raises(UserError, match=r"^objective\.\w+: unknown '\w+' \(did you mean '\w+'\?\)\.$"):
        Objective(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"weighting": "power"}, "expected a number of at least 0 for weighting 'power', found None"),
        ({"weighting": "power", "power": -0.5}, "found -0.5"),
        ({"weighting": "power", "power": float("nan")}, "found nan"),
        ({"power": 0.5}, "expected none for weighting 'elbo', found 0.5"),
        ({"weighting": "unweighted", "power": 0.0}, "expected none for weighting 'unweighted', found 0"),
    ],
)
def test_a_power_that_is_missing_or_out_of_place_is_one_sentence(kwargs, says):
    with pytest.raises(UserError, match=f"^objective.power: .*{says}") as caught:
        Objective(**kwargs)
    assert str(caught.value).endswith(".")


def test_named_weightings_are_powers():
    """The same coefficients bit for bit; ``elbo`` and ``unweighted`` are only names."""
    for weighting, power in (("elbo", 0), ("unweighted", 1)):
        for text in ("mirror", "fixedcount", "isad-exact"):
            named, told = (
                Method.parse(text, objective=objective).draw(Key(1, 1), rows_of(toy_row(4), 20), Uniform())
                for objective in (Objective(weighting), Objective("power", power=power))
            )
            assert torch.equal(named.coefficient, told.coefficient)
        assert Objective(weighting).power == power


def test_exact_at_eps_0_whatever_the_weighting():
    """At t = 1 all tokens are masked: the row loss is the mean CE under full masking, for all weightings."""
    row = toy_row(4)
    for weighting, power in (("elbo", None), ("unweighted", None), ("power", 0.3)):
        objective, t = Objective(weighting, eps=0.0, power=power), torch.ones(3, dtype=torch.float64)
        draw = Method.parse("standard", objective=objective).draw_at(t, Key(0, 0), rows_of(row, 3), Uniform())
        assert torch.allclose(features(row, draw), torch.from_numpy(row.table[-1].mean(0)).expand(3, -1))


def test_step_helper_has_rows_of_unequal_length():
    assert len(set(step_of(8).maskable.sum(1).tolist())) > 1
