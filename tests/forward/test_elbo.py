"""The ELBO of given rows: unbiased with its gradient, its errors honest, its noise shared between models."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabledllm
from stabledllm import Key, Method, MethodOptions, UserError, elbo, elbo_parts
from stabledllm.data.rows import TokenRow, collate
from stabledllm.forward import elbo as likelihood
from stabledllm.forward import elbo_plan
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.objective import Objective
from stabledllm.noise.views import MultiSample
from tests.checks.moments import check_mean, check_variance
from tests.checks.statistics import Z, assert_mean
from tests.float64 import default_float64  # noqa: F401
from tests.oracle import ToyRow, moments, objective_by_counts, step_variance, toy_row
from tests.statistical.cases import FITTED, case

pytestmark = pytest.mark.statistical
MASK, SIZE, COPIES, EPS = -1, 4, 1600, 0.1
TOY = toy_row(SIZE)


class ToyModel(nn.Module):
    """The oracle's toy row: cross-entropies linear in the parameters, with its table's values and gradients.

    Every copy of the row (its prompt token is its number) has parameters of its own, so that one backward gives the
    gradient of each copy's estimate.
    """

    def __init__(self, copies: int = COPIES, scale: float = 1.0):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(copies, TOY.table.shape[2] - 1))
        self.table, self.scale = torch.from_numpy(TOY.table), scale
        self.forwards = 0

    def forward(self, noisy, attention_mask, *, selected, targets):
        self.forwards += len(noisy)
        state = ((noisy[:, 1:] == MASK).long() << torch.arange(SIZE)).sum(1)
        at = self.table[state]
        nll = at[..., 0] + (at[..., 1:] * self.shift[noisy[:, 0]][:, None]).sum(-1)
        return SimpleNamespace(nll=self.scale * nll[selected[:, 1:]])


def copies(n: int = COPIES) -> dict[str, torch.Tensor]:
    ids = torch.cat((torch.arange(n)[:, None], torch.ones(n, SIZE, dtype=torch.int64)), 1)
    response = (torch.arange(SIZE + 1) > 0).expand(n, -1)
    return {"input_ids": ids, "attention_mask": torch.ones(n, SIZE + 1), "maskable": response}


def estimates(text: str, budget: int, **options):
    """Row losses and their gradients of independent copies, shape (COPIES, F), and the estimate."""
    model = ToyModel()
    density = Tabulated(FITTED) if "ppots" in text else None
    found = elbo(
        model, copies(), text, budget, density=density, eps=EPS, mask_id=MASK, tokens_per_batch=10**6, **options
    )
    assert model.forwards == found.forwards == budget * COPIES
    loss = -found.per_token().value
    loss.sum().backward()
    return torch.cat((loss.detach()[:, None], model.shift.grad), 1), found


def exact_variance(text: str, draws: int, replicates: int):
    """Of a row's loss and gradient, by enumeration."""
    return exact_variance_of(TOY, text, draws, replicates)


def exact_variance_of(toy: ToyRow, text: str, draws: int, replicates: int):
    source, _, rest = text.partition("+")
    if source not in ("lowdisc", "strats"):
        return moments(case(text, eps=EPS).setting, toy)[1] / draws
    n = draws // replicates
    return step_variance(case(rest or "standard", eps=EPS).setting, toy, source, n, math.ceil(n**0.5)) / replicates


def check_elbo(text: str, budget: int, **options) -> None:
    """Mean, variance, gradient and squared standard error are those of the enumeration."""
    samples, found = estimates(text, budget, **options)
    exact = exact_variance(text, found.draws, found.replicates)
    check_mean(samples, objective_by_counts(TOY, EPS), text)
    check_variance(samples, exact, text)
    if found.replicates > 1:
        assert_mean(found.per_token().stderr ** 2, float(exact[0]), f"{text}, squared standard error")


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("standard", 4),
        ("ppots+mirror", 4),
        ("lowdisc+fixedcount", 8),
        ("lowdisc+fixedcount", 2),
        ("lowdisc+ppots+fixedcount", 8),
        ("lowdisc+fixedcount+mirror", 8),
        ("strats+multisample", 16),
        ("strats+ppots", 6),
    ],
)
def test_mean_variance_gradient_and_error_by_enumeration(text, budget):
    check_elbo(text, budget)


def test_replicates_are_a_choice():
    check_elbo("lowdisc+fixedcount", 8, replicates=4)


def test_a_lattice_cut_in_two_would_claim_another_error(monkeypatch):
    def one_run(method, call, rows, draws, groups):
        u = [method.source.uniforms(Key(call, r), draws, torch.device("cpu")) for r in rows]
        return torch.stack(u)

    monkeypatch.setattr(elbo_plan, "_uniforms", one_run)
    with pytest.raises(AssertionError):
        check_elbo("lowdisc+fixedcount", 8)


def test_rows_under_one_key_would_not_be_independent(monkeypatch):
    def one_key(method, call, rows, draws, groups):
        return method.source.uniforms(Key(call, 0), draws, torch.device("cpu")).expand(len(rows), -1)

    check_elbo("lowdisc+fixedcount", 3)
    monkeypatch.setattr(elbo_plan, "_uniforms", one_key)
    with pytest.raises(AssertionError):
        check_elbo("lowdisc+fixedcount", 3)


def test_eight_forwards_of_the_lattice_are_far_less_noisy_than_eight_of_standard():
    lattice, standard = (exact_variance(text, 8, r)[0] for text, r in (("lowdisc+fixedcount", 2), ("standard", 8)))
    assert lattice < 0.15 * standard, "by enumeration"
    measured = [estimates(text, 8)[0].var(0) for text in ("lowdisc+fixedcount", "standard")]
    assert measured[0][0] < 0.2 * measured[1][0], "the losses"
    assert measured[0][1:].sum() < 0.3 * measured[1][1:].sum(), "the gradients"


def test_error_of_the_mean_is_that_of_repeats():
    """40 rows at a time: 50 means and their reported errors."""
    _, found = estimates("lowdisc+fixedcount", 4)
    value, stderr = (x.detach().view(-1, 40) for x in (found.value, found.stderr))
    told = (stderr.square().sum(1) / 40**2).mean()
    truth = value.mean(1).var()
    assert abs(float(told / truth) - 1) < Z * (2 / 49) ** 0.5
    assert found.mean.stderr == pytest.approx(float(stderr.square().sum().sqrt()) / COPIES)
    assert found.mean.n == COPIES
    assert found.mean.value == pytest.approx(float(value.mean()))
    assert found.mean.unit == "nats"
    assert found.per_token().mean.value == pytest.approx(found.mean.value / SIZE)


def test_two_models_under_one_seed_share_their_noise():
    """A model and its like: the difference of their ELBOs is far less noisy than under seeds of their own."""
    near, far = ToyModel(scale=1.0), ToyModel(scale=1.1)

    def value(model, seed):
        with torch.no_grad():
            return elbo(model, copies(), "standard", 2, seed=seed, eps=EPS, mask_id=MASK).value

    shared, own = value(near, 0) - value(far, 0), value(near, 0) - value(far, 1)
    truth = 0.1 * SIZE * objective_by_counts(TOY, EPS)[0]
    for difference in (shared, own):
        assert_mean(difference, float(truth))
    assert shared.var() < 0.02 * own.var()


# A real model, small enough to enumerate.

ROWS = [
    TokenRow([3, 1, 4, 1, 5], prompt_length=2),
    TokenRow([2, 7, 1, 8, 2, 8, 1], prompt_length=3),
    TokenRow([1, 6, 1], prompt_length=1),
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = TinyMDMConfig(12, 8, 1, 2, 16, mask_token_id=9, initializer_range=0.5)
    return TinyMDM(config).double()


def exact_elbo(model, row: TokenRow) -> torch.Tensor:
    """``-sum_k 1/k mean_{|M|=k} sum_M CE``: the bound at eps = 0, every mask enumerated; differentiable."""
    ids, places = torch.tensor(row.input_ids), range(row.prompt_length, len(row))
    total = torch.zeros(())
    for k in range(1, row.response_length + 1):
        for chosen in itertools.combinations(places, k):
            noisy = ids.clone()
            noisy[list(chosen)] = 9
            logits = model(noisy[None]).logits[0, list(chosen)]
            nll = F.cross_entropy(logits, ids[list(chosen)], reduction="sum")
            total = total - nll / k / math.comb(row.response_length, k)
    return total


def gradient(model, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def test_a_real_models_bound_and_gradient_by_enumeration(model):
    """Every replicate has one draw of each count, so that 2,000 of them know the value to a few thousandths."""
    exact = torch.stack([exact_elbo(model, row) for row in ROWS])
    repeated = [row for row in ROWS for _ in range(200)]
    found = elbo(model, repeated, "lowdisc+fixedcount", 12, eps=0.0)
    error = found.stderr.view(3, 200).square().sum(1).sqrt() / 200
    away = (found.value.view(3, 200).mean(1) - exact).detach().abs()
    assert (away <= 4.5 * error + 1e-12).all()
    assert (error < 0.02 * exact.detach().abs()).all()
    slope = gradient(model, found.value.view(3, 200).mean(1).sum())
    truth = gradient(model, exact.sum())
    assert (slope - truth).norm() < 0.05 * truth.norm()
    assert found.tokens.view(3, 200)[:, 0].tolist() == [3, 4, 2]


def test_one_response_token_leaves_no_noise(model):
    row = TokenRow([4, 5, 6], prompt_length=2)
    found = elbo(model, [row], budget=4, eps=0.0)
    exact = exact_elbo(model, row)
    torch.testing.assert_close(found.value[0], exact)
    assert float(found.stderr) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradient(model, found.value.sum()), gradient(model, exact))


def test_the_gradient_is_that_of_the_value(model):
    """Finite differences under one seed."""
    found = gradient(model, elbo(model, ROWS, "lowdisc+fixedcount+mirror", 8, seed=3).value.sum())
    parameters = nn.utils.parameters_to_vector(model.parameters()).detach()
    direction = torch.randn(len(parameters), generator=torch.Generator().manual_seed(1))

    def moved(step):
        nn.utils.vector_to_parameters(parameters + step * direction, model.parameters())
        with torch.no_grad():
            return elbo(model, ROWS, "lowdisc+fixedcount+mirror", 8, seed=3).value.sum()

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    torch.testing.assert_close(found @ direction, slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("text", ["lowdisc+fixedcount", "strats+mirror"])
def test_batching_and_padding_change_nothing(model, text):
    whole = elbo(model, ROWS, text, 8, seed=5)
    small = elbo(model, ROWS, text, 8, seed=5, tokens_per_batch=8)
    left = {name: value.clone() for name, value in collate(ROWS, 0).items() if name != "delimiter"}
    for name, value in left.items():
        for i, row in enumerate(ROWS):
            left[name][i] = value[i].roll(7 - len(row))
    left = {name: F.pad(value, (2, 0)) for name, value in left.items()}
    assert whole.forwards == small.forwards == 8 * 3
    torch.testing.assert_close(small.value, whole.value)
    # Rotary positions are relative: a shift of the whole row changes nothing either.
    torch.testing.assert_close(elbo(model, left, text, 8, seed=5).value, whole.value)


def test_noise_is_a_function_of_seed_step_and_row(model):
    def value(rows=ROWS, **at):
        return elbo(model, rows, **at).value.detach()

    torch.manual_seed(0)
    first = value(seed=1, step=2)
    torch.manual_seed(9)
    assert torch.equal(value(seed=1, step=2), first)
    torch.testing.assert_close(value(ROWS[:2], seed=1, step=2), first[:2])
    for other in ({"seed": 2, "step": 2}, {"seed": 1, "step": 3}):
        assert not torch.isclose(value(**other), first)[:2].any(), "the third has too few masks to tell"
    twice = value([ROWS[0], ROWS[0]], seed=1, step=2)
    assert not torch.isclose(twice[0], twice[1])


def test_parts_add_up_and_need_one_graph_at_a_time(model):
    whole = elbo(model, ROWS, step=4)
    expected = gradient(model, whole.value @ torch.tensor([1.0, -2.0, 0.5]))
    total, count = torch.zeros(3), 0
    for part in elbo_parts(model, ROWS, step=4, tokens_per_batch=14):
        (part @ torch.tensor([1.0, -2.0, 0.5])).backward()
        total, count = total + part.detach(), count + 1
    assert count > 3
    torch.testing.assert_close(total, whole.value.detach())
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), expected)


def test_a_dpo_step_runs_whole_and_in_parts(model):
    """The snippet of the docstring, on two responses to one prompt; two passes in parts give the same gradient."""
    frozen = TinyMDM(model.config).double()
    pair = [TokenRow([3, 1, 4, 1, 5], prompt_length=2), TokenRow([3, 1, 7, 7], prompt_length=2)]
    with torch.no_grad():
        reference = elbo(frozen, pair, step=11).value

    def loss(value):
        ratio = value - reference
        return -F.logsigmoid(0.1 * (ratio[0] - ratio[1]))

    value = elbo(model, pair, step=11).value
    expected = gradient(model, loss(value))
    slope = torch.func.grad(loss)(value.detach())
    for part in elbo_parts(model, pair, step=11, tokens_per_batch=10):
        (slope * part).sum().backward()
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), expected)
    assert not elbo(frozen, pair, step=11).value.detach().isnan().any()


def test_a_rows_noise_is_that_of_its_number_whatever_is_beside_it(model):
    """So that micro-batches, ranks and stored values of a reference all see the same draws."""
    for text in ("lowdisc+fixedcount", "standard", "strats+complement"):
        together = elbo(model, ROWS, text, step=3, numbers=[7, 2, 40]).value
        apart = [elbo(model, [ROWS[i]], text, step=3, numbers=[n]).value for i, n in ((0, 7), (1, 2), (2, 40))]
        torch.testing.assert_close(torch.cat(apart), together, rtol=0, atol=1e-12)
        assert not torch.allclose(elbo(model, ROWS, text, step=3).value, together)
    torch.testing.assert_close(elbo(model, ROWS, step=3, numbers=[0, 1, 2]).value, elbo(model, ROWS, step=3).value)


@pytest.mark.parametrize("numbers", [[0, 1], [0, 1, 1], [0, 1, -1], [0, 1, 2.5], [0, 1, 2**31]])
def test_numbers_that_cannot_be(model, numbers):
    with pytest.raises(UserError, match="elbo: numbers: expected"):
        elbo(model, ROWS, numbers=numbers)


def test_without_gradients(model):
    with torch.no_grad():
        found = elbo(model, ROWS)
    assert not found.value.requires_grad
    assert found.draws == 8
    assert found.replicates == 2
    assert (found.stderr > 0).all()


@pytest.mark.parametrize(
    ("method", "budget", "replicates"),
    [("lowdisc+fixedcount", 2, None), ("lowdisc+fixedcount", 5, None), ("standard", 1, None), ("lowdisc", 8, 1)],
)
def test_one_replicate_has_no_error(model, method, budget, replicates):
    found = elbo(model, ROWS, method, budget, replicates=replicates)
    assert found.replicates == 1
    assert found.stderr.isnan().all()
    assert math.isnan(found.mean.stderr)
    assert found.mean.as_dict()["stderr"] is None


def test_a_partly_used_second_view_is_not_paid(model):
    method = Method.parse("lowdisc+mirror", MethodOptions(mirror_below=0.5))
    found = elbo(model, ROWS, method, 8)
    assert found.forwards == 3 * 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "clipped"}, "expected an unbiased method, found 'clipped'"),
        ({"method": "isad"}, "unbiased"),
        ({"method": "syrm"}, "unbiased"),
        ({"method": "ema"}, "ema steadies"),
        ({"method": "ppots"}, "needs a fitted p"),
        ({"method": "mirror", "budget": 7}, "divisible by the 2 views of 'mirror', found 7"),
        ({"budget": 0}, "found 0"),
        ({"method": "autoregressive"}, "a method that masks tokens, found 'autoregressive'"),
        ({"method": "adaptive"}, "a method whose density stands still, found 'adaptive'"),
        ({"method": "adaptive+fixedcount"}, "density stands still"),
        ({"method": 5}, "a method's name or a Method, found int"),
        ({"eps": 1.0}, r"eps: expected a number in \[0, 1\), found 1.0"),
        ({"eps": -0.1}, "eps: expected a number"),
        ({"eps": math.nan}, "eps: expected a number"),
        ({"eps": True}, "eps: expected a number"),
        ({"eps": "0.1"}, "eps: expected a number"),
        ({"budget": 8.0}, "budget: expected a whole number of at least 1, found 8.0"),
        ({"budget": True}, "budget: expected a whole number"),
        ({"budget": "8"}, "budget: expected a whole number"),
        ({"budget": -8}, "budget: expected a whole number of at least 1, found -8"),
        ({"seed": 1.5}, "seed: expected a whole number, found 1.5"),
        ({"step": -1}, "step: expected a whole number of at least 0, found -1"),
        ({"tokens_per_batch": 0}, "tokens_per_batch: expected a whole number of at least 1"),
        ({"mask_id": 2.5}, "mask_id: expected a token id, found 2.5"),
        ({"mask_id": 12}, "mask_id: expected one of the model's 12 tokens, found 12"),
        ({"pad_id": None, "rows": [[1, 2]]}, "expected token rows, or tensors by the names"),
        ({"replicates": 3}, "divide the 8 draws of a row, found 3"),
        ({"replicates": 0}, "found 0"),
        ({"rows": []}, "at least one row"),
        ({"rows": [TokenRow([1, 2], prompt_length=2)]}, "found none in row 0"),
        ({"rows": {"input_ids": torch.ones(1, 2)}}, "'attention_mask'"),
    ],
)
def test_refusals(model, arguments, words):
    given = {"rows": ROWS} | arguments
    with pytest.raises(UserError, match=words):
        elbo(model, **given)
    if "replicates" not in arguments:
        with pytest.raises(UserError, match=words):
            elbo_parts(model, **given)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("input_ids", torch.ones(3, 7), r"'input_ids' of whole numbers.*found torch.float32"),
        ("input_ids", torch.ones(21, dtype=torch.int64), r"shape \(B, L\), found .* of shape \(21,\)"),
        ("maskable", torch.full((3, 7), 0.5), "'maskable' to be bool, or 0 and 1"),
        ("attention_mask", torch.full((3, 7), -100.0), "'attention_mask' to be bool, or 0 and 1"),
        ("attention_mask", None, "the rows' tensor 'attention_mask'"),
    ],
)
def test_tensors_of_another_kind_are_refused(model, name, value, words):
    rows = collate(ROWS, 0)
    with pytest.raises(UserError, match=words):
        elbo(model, rows | {name: value})


def test_masks_may_be_numbers(model):
    rows = collate(ROWS, 0)
    as_numbers = {name: value.long() if value.dtype == torch.bool else value for name, value in rows.items()}
    assert torch.equal(elbo(model, as_numbers).value, elbo(model, rows).value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_cross_entropies_are_summed_in_float32(dtype):
    """A model of one's own may give them in half precision: the row's sum has float32's digits, as has its gradient."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.full((), 1.0))

        def forward(self, noisy, attention_mask, *, selected, targets):
            nll = (self.level * (1 + targets / 2048)).to(dtype)
            return SimpleNamespace(nll=nll[selected])

    rows = [TokenRow([1] + [3 * i % 60 for i in range(300)], prompt_length=1)]
    found = elbo(Half(), rows, "fixedcount", 16, mask_id=99, eps=0.0)
    each = (1 + torch.tensor(rows[0].input_ids[1:]) / 2048).to(dtype).double()
    assert found.value.dtype == torch.float32
    # Every token's cross-entropy is known: a count of k adds (P / k) times the sum over k of them.
    assert float(-found.per_token().value[0]) == pytest.approx(float(each.mean()), rel=2e-3)
    if bool((each == 1).all()):
        assert float(-found.value[0]) == pytest.approx(300.0, rel=1e-6)
    found.value.sum().backward()


def test_tensors_of_other_shapes_and_masked_padding_are_refused(model):
    rows = collate(ROWS, 0)
    with pytest.raises(UserError, match=r"'maskable' of the shape \(B, L\)"):
        elbo(model, rows | {"maskable": rows["maskable"][:, :2]})
    with pytest.raises(UserError, match="padding among them"):
        elbo(model, rows | {"maskable": torch.ones_like(rows["maskable"])})
    del model.config.mask_token_id
    with pytest.raises(UserError, match="mask_id"):
        elbo(model, ROWS)


def test_the_name_is_the_function():
    assert stabledllm.elbo is likelihood.elbo
    assert callable(stabledllm.elbo_parts)


def test_a_method_object_is_used_as_it_is(model):
    built = replace(Method.parse("fixedcount"), views=MultiSample(2))  # made by hand: its name does not say so
    of_built, of_name, of_other = (
        elbo(model, ROWS, method, budget=2, seed=1).value for method in (built, "fixedcount+multisample", "fixedcount")
    )
    assert torch.equal(of_built, of_name)
    assert not torch.equal(of_built, of_other)
    with pytest.raises(UserError, match="under weighting 'cosine'"):
        elbo(model, ROWS, Method.parse("fixedcount", objective=Objective("cosine")), budget=2, seed=1)
