"""Variance within items, the signal, and the variance between items, against laws that are known."""

import pytest
import torch

from stabledllm.likelihood.repeated import BetweenItems, Repeats, excess, gradient_of


def repeats(rows: torch.Tensor) -> Repeats:
    seen = Repeats()
    for row in rows:
        seen.add(row, value=float(row.sum()))
    return seen


def test_variance_and_signal_of_known_rows():
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = repeats(rows)
    assert seen.gradient_variance == pytest.approx(float(rows.var(0).sum()))
    assert seen.variance("value") == pytest.approx(float(rows.sum(1).var()))
    pairs = sum(float(a @ b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j) / (7 * 6)
    assert seen.signal == pytest.approx(pairs)


@pytest.mark.statistical
def test_signal_and_variance_between_items_are_unbiased():
    """Items whose means have variance 3 x 4, seen three times each under noise of variance 3."""
    generator, found, signals = torch.Generator().manual_seed(1), [], []
    for _ in range(600):
        between = BetweenItems()
        for _ in range(4):
            mean = 2 * torch.randn(3, generator=generator, dtype=torch.float64)
            item = repeats(mean + torch.randn(3, 3, generator=generator, dtype=torch.float64))
            between.add(item)
            signals.append(item.signal - float(mean @ mean))
        found.append(between.variance)
    for values, truth in ((found, 12.0), (signals, 0.0)):
        values = torch.tensor(values)
        assert abs(float(values.mean()) - truth) < 4.5 * float(values.std()) / len(values) ** 0.5
    assert float(torch.tensor(found).std()) / 600**0.5 < 0.5


def test_one_item_tells_no_variance_between():
    between = BetweenItems()
    between.add(repeats(torch.rand(3, 2)))
    assert between.variance != between.variance


def test_the_excess_of_a_square_is_its_variance():
    x = torch.rand(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def at_mean(left_out):
        keep = [i for i in range(6) if i != left_out]
        return float(x[keep].mean() ** 2)

    assert excess(6, float((x**2).mean()), at_mean) == pytest.approx(float(x.var()))


def test_parameters_that_a_part_does_not_reach_have_no_gradient():
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    assert gradient_of([a.sum(), 2 * b.sum()], [a, b]).tolist() == [1, 1, 2, 2]
    assert gradient_of([], [a]).tolist() == [0, 0]
