"""CART, LIFT and GIFT against full enumeration: the mean and the variance of each method's loss, on toy rows.

Legend: P tokens of a toy row, M the masked ones, S the larger set that LIFT chooses from; masks are numbers of P bits.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn

from stabledllm.errors import UserError
from stabledllm.evaluation.validation import row_forwards, row_nll
from stabledllm.forward.chosen import chosen, further_forwards
from stabledllm.forward.meter import LossMeter
from stabledllm.forward.nll import forward_nll
from stabledllm.integrations.noise import Noise
from stabledllm.loss import row_losses
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.noise.tokens import cart_weights
from tests.checks.statistics import assert_mean, assert_variance
from tests.fakes import tiny
from tests.oracle import all_masks, panels, toy_row
from tests.statistical.cases import FITTED

EPS, P, DRAWS = 0.1, 3, 40_000
ROW = toy_row(P, seed=5)
TABLE = ROW.table[..., 0]
"""Cross-entropies (2^P, P) of the toy row."""
MASKS = all_masks(P)
COUNT = MASKS.sum(1)
MASK_ID, PROMPT = 9, 7
THIRDS = np.array([EPS, 1 / 3, 2 / 3, 0.9])


class ToyModel(nn.Module):
    """Says of every partly masked row what the table says; a prompt of one token stands before the P others."""

    def __init__(self):
        super().__init__()
        self.entropies = torch.tensor([0.2, 1.5, 0.7], dtype=torch.float64)
        self.asked: list[int] = []

    def forward(self, ids, attention_mask, *, selected, targets=None):
        masked = (ids == MASK_ID)[:, 1:]
        assert bool((masked == selected[:, 1:]).all())
        self.asked.append(len(ids))
        if targets is None:
            return SimpleNamespace(logits=_logits_of(self.entropies).repeat(len(ids), 1))
        state = (masked.long() << torch.arange(P)).sum(1)
        return SimpleNamespace(nll=torch.from_numpy(TABLE)[state][masked])


def _logits_of(entropies: torch.Tensor) -> torch.Tensor:
    """Logits of two tokens of which one has the probability that gives each entropy (of at most log 8) over 8."""
    out = []
    for wanted in entropies.tolist():
        low, high = 0.0, 50.0
        for _ in range(80):
            middle = (low + high) / 2
            p = torch.tensor([middle] + [0.0] * 7, dtype=torch.float64).softmax(0)
            low, high = (middle, high) if float(torch.special.entr(p).sum()) > wanted else (low, middle)
        out.append([low] + [0.0] * 7)
    return torch.tensor(out, dtype=torch.float64)


def drawn(text: str, objective: Objective, n: int = DRAWS) -> tuple[torch.Tensor, float]:
    """Row losses of n draws of the toy row under a method, and the forwards per row that chose tokens."""
    method, model = Method.parse(text, objective=objective), ToyModel()
    sampler = method.sampler(Tabulated(FITTED))
    ids = torch.tensor([[PROMPT, 1, 2, 3]]).expand(n, -1)
    maskable = (torch.arange(1 + P) > 0).expand(n, -1)
    rows, key = Rows(torch.arange(n), n, maskable, torch.arange(1 + P)), Key(5, 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(maskable)}
    draw = chosen(method.draw(key, rows, sampler), method, key, rows, batch, model, MASK_ID)
    nll, _ = forward_nll(model, batch, draw, MASK_ID)
    return row_losses(nll, draw.mask, draw.coefficient, draw.active).double(), draw.forwards / n


@dataclass
class Law:
    """The first and second moment of what one view adds, given its mask M and p: the loss of the tokens in the end."""

    objective: Objective
    q: np.ndarray | None = None
    """Of GIFT, the exponent of each token."""
    rho: tuple[np.ndarray, np.ndarray] = field(default_factory=lambda: panels(np.array([]), 0.0, 1.0))

    def given(self, mask: int, p: float) -> tuple[float, float]:
        """Moments of the mean cross-entropy sum (without coefficient) of a view that masks ``mask`` at p."""
        total = lambda one: float(TABLE[one] @ MASKS[one])  # noqa: E731
        if self.objective.tokens == "cart":
            visible = torch.from_numpy(np.append(True, ~MASKS[mask]))
            value = float(TABLE[mask] @ (MASKS[mask] * cart_by_definition(visible.tolist())[1:]))
            return value, value**2
        if self.objective.tokens != "lift" or 1 / 3 <= p <= 2 / 3 or 1 - p <= 0.1 or not mask:
            return total(mask), total(mask) ** 2
        nodes, weights = self.rho
        join = (0.1 + nodes * (0.9 - p)) / (1 - p)
        first = second = 0.0
        rest = [i for i in range(P) if not mask >> i & 1]
        for extra in itertools.chain.from_iterable(itertools.combinations(rest, r) for r in range(len(rest) + 1)):
            chance = float(weights @ (join ** len(extra) * (1 - join) ** (len(rest) - len(extra))))
            among = mask | sum(1 << i for i in extra)
            order = sorted(
                (i for i in range(P) if among >> i & 1), key=lambda i: TABLE[among, i] * (1 if p > 0.5 else -1)
            )
            end = sum(1 << i for i in order[: COUNT[mask]])
            first, second = first + chance * total(end), second + chance * total(end) ** 2
        return first, second


def cart_by_definition(visible: list[bool], p: float = 0.1) -> np.ndarray:
    """The weight of every position, by two loops."""
    out = np.zeros(len(visible))
    for i in range(len(visible)):
        out[i] = sum(0.5 * p * (1 - p) ** (abs(i - j) - 1) for j in range(len(visible)) if visible[j] and j != i)
    return out


def moments(text: str, objective: Objective) -> tuple[float, float]:
    """The exact mean and variance of the row loss of a method, t and masks enumerated."""
    law, parts = Law(objective), text.split("+")
    density = np.array(FITTED) if "ppots" in parts else np.ones(5)
    density = density / density.mean()
    a, scale = objective.power, objective.scale
    if {"fixedcount", "complement"} & set(parts):
        return _of_counts(law, "complement" in parts, a, scale)
    breaks = np.concatenate(((THIRDS - EPS) / (1 - EPS), np.arange(6) / 5))
    if objective.bell:
        breaks = np.concatenate((special.betainc(*objective.bell, (THIRDS - EPS) / (1 - EPS)), 4.0 ** -np.arange(15)))
        breaks = np.concatenate((breaks, 1 - breaks))
    if "mirror" in parts:
        breaks = np.append(breaks, (0.5 - EPS) / (1 - EPS))
    t, dt = panels(breaks, 0.0, 1.0)
    first = second = 0.0
    for place, width in zip(t, dt, strict=True):
        ratio = special.betaincinv(*objective.bell, place) if objective.bell else place
        p = (1 - EPS) * ratio + EPS
        weight = density[min(int(place * 5), 4)]
        each = scale * p ** (a - 1) / P / weight
        ones = [law.given(mask, p) for mask in range(2**P)]
        if "mirror" in parts:
            mean, square = _mirrored(ones, p)
        else:
            chance = p**COUNT * (1 - p) ** (P - COUNT)
            mean, square = (float(chance @ np.array([one[i] for one in ones])) for i in (0, 1))
        first, second = first + width * weight * each * mean, second + width * weight * each**2 * square
    return first, second - first**2


def _mirrored(ones: list[tuple[float, float]], p: float) -> tuple[float, float]:
    """Moments of the mean of two views with the uniforms u and 1 - u, whose choices are independent given the masks."""
    both = max(0.0, 2 * p - 1)
    law = {(0, 0): 1 - 2 * p + both, (1, 0): p - both, (0, 1): p - both, (1, 1): both}
    mean = square = 0.0
    for tokens in itertools.product(law, repeat=P):
        chance = math.prod(law[token] for token in tokens)
        one, other = (ones[sum(token[view] << i for i, token in enumerate(tokens))] for view in (0, 1))
        mean += chance * (one[0] + other[0]) / 2
        square += chance * (one[1] + other[1] + 2 * one[0] * other[0]) / 4
    return mean, square


def _of_counts(law: Law, pairs: bool, a: float, scale: float) -> tuple[float, float]:
    """Exact counts: k is uniform on 1..P, and p has its law given the count."""
    table = np.zeros((2**P, 2))
    coefficients = np.zeros(P + 1)
    for k in range(1, P + 1):
        p, dp = panels(THIRDS, EPS, 1.0)
        weight = dp * p ** (k - 1 + a) * (1 - p) ** (P - k)
        coefficients[k] = math.comb(P, k) * weight.sum() / (1 - EPS)
        for mask in np.flatnonzero(k == COUNT):
            table[mask] = weight @ np.array([law.given(mask, x) for x in p]) / weight.sum()
    first = second = 0.0
    for k in range(1, P + 1):
        subsets = np.flatnonzero(k == COUNT)
        for mask in subsets:
            chance = 1 / P / len(subsets)
            if not pairs:
                values = [(coefficients[k] * scale, table[mask])]
            elif k == P:
                values = [(coefficients[P] * scale, table[mask])]
            else:
                rest = 2**P - 1 - mask
                values = [(coefficients[k] * scale / 2, table[mask]), (coefficients[P - k] * scale / 2, table[rest])]
            mean = sum(c * one[0] for c, one in values)
            spread = sum(c**2 * (one[1] - one[0] ** 2) for c, one in values)
            first, second = first + chance * mean, second + chance * (mean**2 + spread)
    return first, second - first**2


LIFTED = Objective(eps=EPS, tokens="lift")
CART = Objective("unweighted", "masked", eps=EPS, tokens="cart")
CASES = [
    *((text, LIFTED) for text in ("standard", "ppots", "mirror", "fixedcount", "complement", "lowdisc+fixedcount")),
    ("fixedcount", Objective("unweighted", eps=EPS, tokens="lift")),
    ("standard", Objective("bell", eps=EPS, tokens="lift")),
    *((text, CART) for text in ("standard", "ppots+mirror", "fixedcount", "complement")),
    ("mirror", Objective(eps=EPS, tokens="cart")),
    ("standard", Objective("bell", eps=EPS, tokens="cart")),
]


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("text", "objective"), CASES, ids=lambda x: x if isinstance(x, str) else f"{x.weighting}-{x.tokens}"
)
def test_mean_and_variance_are_those_of_the_enumeration(text, objective):
    """Low discrepancy couples the rows of a step and leaves the law of each row."""
    values, _ = drawn(text, objective)
    mean, variance = moments(text, objective)
    if "lowdisc" in text:
        assert float(values.mean()) == pytest.approx(mean, abs=4.3 * (variance / DRAWS) ** 0.5)
        return
    assert_mean(values, mean)
    assert_variance(values, variance)


@pytest.mark.parametrize("weighting", ["elbo", "unweighted"])
@pytest.mark.parametrize("tokens", ["lift", "cart"])
def test_every_method_has_one_objective(weighting, tokens):
    """By enumeration, without a draw: exact counts, pairs, a density and two views, as independent masks."""
    objective = Objective(weighting, eps=EPS, tokens=tokens)
    truth = moments("standard", objective)
    for text in ("ppots", "mirror", "fixedcount", "complement"):
        assert moments(text, objective)[0] == pytest.approx(truth[0], rel=1e-9)
    assert moments("fixedcount", objective)[1] < truth[1], "less noise of the same objective"
    plain = moments("standard", Objective(weighting, eps=EPS))[0]
    assert truth[0] != pytest.approx(plain, rel=1e-3), "it is another objective than that without it"


def gift_moments(mirrored: bool, weights: np.ndarray) -> tuple[float, float]:
    t, dt = panels(np.array([(0.5 - EPS) / (1 - EPS), *(np.arange(6) / 5)]), 0.0, 1.0)
    beta = np.sqrt(ToyModel().entropies.numpy())
    first = second = 0.0
    for place, width in zip(t, dt, strict=True):
        p, weight = (1 - EPS) * place + EPS, weights[min(int(place * 5), 4)]
        q = 1 - (1 - p) ** (beta / beta.mean())
        value = np.array([(TABLE[mask] * MASKS[mask] / q).sum() for mask in range(2**P)]) / P / weight
        if mirrored:
            both = np.maximum(0, 2 * q - 1)
            law = {(0, 0): 1 - 2 * q + both, (1, 0): q - both, (0, 1): q - both, (1, 1): both}
            mean = square = 0.0
            for tokens in itertools.product(law, repeat=P):
                chance = math.prod(law[token][i] for i, token in enumerate(tokens))
                x = sum(value[sum(token[v] << i for i, token in enumerate(tokens))] for v in (0, 1)) / 2
                mean, square = mean + chance * x, square + chance * x**2
        else:
            chance = np.where(MASKS, q, 1 - q).prod(1)
            mean, square = chance @ value, chance @ value**2
        first, second = first + width * weight * mean, second + width * weight * square
    return first, second - first**2


@pytest.mark.statistical
@pytest.mark.parametrize("text", ["standard", "ppots", "mirror", "strats"])
def test_gift_has_the_mean_and_variance_of_its_own_masks(text):
    values, further = drawn(text, Objective(eps=EPS, tokens="gift"))
    weights = np.array(FITTED) / np.mean(FITTED) if text == "ppots" else np.ones(5)
    mean, variance = gift_moments(text == "mirror", weights)
    assert further == 1, "one forward of a row, however many views"
    if text == "strats":
        assert float(values.mean()) == pytest.approx(mean, abs=4.3 * (variance / DRAWS) ** 0.5)
        return
    assert_mean(values, mean)
    assert_variance(values, variance)


def test_cart_weighs_by_what_is_visible_near_a_token():
    visible = torch.rand(3, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = np.array([[cart_by_definition(view) for view in row] for row in visible.tolist()])
    np.testing.assert_allclose(cart_weights(visible).numpy(), expected, rtol=1e-12)
    long = torch.ones(3001, dtype=torch.bool)
    long[1500] = False
    assert float(cart_weights(long)[1500]) == pytest.approx(1.0, abs=1e-12), "inside a long text that is all visible"


def test_pooled_cart_is_about_the_bell_6t_1_minus_t_inside_a_long_text():
    """A token in the middle of a long text has E[w] = 1 - t, so that t weighs t (1 - t) up to a constant."""
    n = 2_000
    for t in (0.2, 0.5, 0.8):
        visible = torch.rand(n, 201, generator=torch.Generator().manual_seed(1)) >= t
        assert_mean(cart_weights(visible)[:, 100], 1 - t)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_the_forwards_that_choose_are_known_in_advance(size):
    objective, n = Objective(eps=EPS, tokens="lift"), 20_000
    for text in ("standard", "mirror", "fixedcount", "complement"):
        method = Method.parse(text, objective=objective)
        maskable = torch.ones(n, size, dtype=torch.bool)
        rows, key = Rows(torch.arange(n), n, maskable, torch.arange(size)), Key(0, 0)
        batch = {"input_ids": torch.zeros(n, size, dtype=torch.long), "attention_mask": maskable}

        def model(ids, attention_mask, *, selected, targets):
            return SimpleNamespace(nll=torch.rand(int(selected.sum()), dtype=torch.float64))

        draw = chosen(method.draw(key, rows, Uniform()), method, key, rows, batch, model, MASK_ID)
        expected = further_forwards(method, Uniform(), torch.tensor([size]))
        assert draw.forwards / n == pytest.approx(expected, abs=0.02)
        assert int(draw.mask.sum()) == int(method.draw(key, rows, Uniform()).mask.sum()), "as many tokens as before"
    assert further_forwards(Method.parse("standard", objective=Objective(tokens="gift")), Uniform(), torch.ones(1)) == 1


@pytest.mark.parametrize(
    ("method", "objective", "says"),
    [
        ("fixedcount", Objective(tokens="gift"), "masks each token with a probability of its own"),
        ("complement", Objective(tokens="gift"), "expected parts of"),
        ("isad", Objective(tokens="lift"), "expected parts of"),
        ("ppots-gradient", Objective(tokens="lift"), "expected parts of"),
        ("lowdisc+ppots-head", Objective(tokens="gift"), "expected parts of"),
        ("lowdisc", Objective("cosine", tokens="lift"), "under weighting 'cosine', which has no masking probability"),
        (
            "fixedcount",
            Objective("bell", tokens="lift"),
            "under weighting 'bell', where the mask ratio behind an exact",
        ),
        ("complement", Objective("bell", window=(0.2, 0.9)), "and objective.window .* contradict: expected parts"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(method, objective, says):
    with pytest.raises(UserError, match=says) as refused:
        Method.parse(method, objective=objective)
    assert str(refused.value).count(". ") == 0


@pytest.mark.parametrize(
    "objective", [Objective(tokens="gift"), Objective("bell", tokens="lift")], ids=["gift", "bell-lift"]
)
def test_an_objective_without_exact_counts_has_a_value_of_its_own_on_held_out_rows(objective):
    """By independent masks; the mean of many draws of training is the same."""
    loaded, rows = tiny.metered(tiny.model(initializer_range=0.5)), tiny.rows(3)
    meter = LossMeter(loaded, rows, objective)
    own = row_nll(meter, draws=256)
    row = torch.arange(3).repeat_interleave(512)
    t = (torch.arange(512) + 0.5).repeat(3).double() / 512
    drawn = meter.losses(row, t, Method.parse("mirror", objective=objective), Key(3, 3)).view(3, 512)
    for one, draws in zip(own, drawn, strict=True):
        assert float(one) == pytest.approx(float(draws.mean()), abs=6 * float(draws.std()) / 16)


@pytest.mark.parametrize("tokens", ["all", "cart", "lift", "gift"])
def test_the_forwards_of_an_evaluation_are_known_beforehand(tokens):
    meter = LossMeter(tiny.metered(tiny.model()), tiny.rows(32), Objective(tokens=tokens))
    expected, _ = row_forwards(meter, draws=8), row_nll(meter, draws=8)
    assert meter.forwards == pytest.approx(expected, rel=0.1)


def test_padding_is_no_context_of_cart_in_a_loop_of_ones_own():
    noise = Noise("standard", mask_id=9, objective=Objective("unweighted", tokens="cart"), seed=3)
    ids, maskable = (torch.tensor([x]).expand(8, -1) for x in ([7, 1, 2, 3], [False, True, True, True]))
    alone = noise.draw(ids, maskable, step=0).token_weights()
    padded = noise.draw(torch.nn.functional.pad(ids, (0, 5)), torch.nn.functional.pad(maskable, (0, 5)), step=0)
    torch.testing.assert_close(padded.token_weights()[:, :4], alone)
    plain = Noise("standard", mask_id=9, objective=Objective("unweighted"), seed=3).draw(ids, maskable, step=0)
    assert bool(((alone > 0) == (plain.token_weights() > 0)).all())
    assert float(alone.max()) < float(plain.token_weights().max())
    with pytest.raises(UserError, match=r"^Noise: expected objective\.tokens all or cart, found lift"):
        Noise(mask_id=9, objective=Objective(tokens="lift"))
