"""``LossMeter``: exact losses of the drawn views, whatever the batching; every forward row is counted."""

from types import SimpleNamespace

import pytest
import torch

from stabledllm.data.rows import TokenRow, collate
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.loss import row_losses
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method, MethodOptions, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key

MASK, PAD = 50, 0
SHAPES = ((4, 1), (9, 3), (6, 5))
ROWS = [TokenRow(list(range(1, length + 1)), prompt, delimiter=[length - 1]) for length, prompt in SHAPES]
KEY = Key(3, 4)


class ContextModel(torch.nn.Module):
    """CE of a token: a function of its place, its id and how much of the attended row is masked."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, ids, attention, selected, targets):
        masked = ((ids == MASK) & attention).sum(1, keepdim=True)
        place = torch.arange(ids.shape[1], dtype=torch.float64)
        every = self.weight * (targets + 0.1 * place + masked)
        assert bool((ids[selected] == MASK).all())
        return SimpleNamespace(nll=every[selected])


def meter(tokens: int = 4096) -> LossMeter:
    return LossMeter(MeteredModel(ContextModel(), MASK, PAD), ROWS, Objective(), tokens_per_batch=tokens)


def requests(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n) % 3, torch.linspace(0.01, 1, n, dtype=torch.float64)


@pytest.mark.parametrize("text", ["standard", "mirror", "multisample3", "fixedcount+mirror", "isad"])
def test_does_not_depend_on_batching(text):
    row, t = requests()
    whole = meter().losses(row, t, Method.parse(text), KEY)
    assert bool((whole[t > 0.9] > 0).all())
    for tokens in (1, 30, 100):
        assert torch.allclose(meter(tokens).losses(row, t, Method.parse(text), KEY), whole, rtol=1e-12)


def test_equals_the_row_losses_of_training():
    """The same noise through ``row_losses``, one row at a time."""
    method, sampler = Method.parse("ppots+mirror", MethodOptions(mirror_below=0.6)), Tabulated([1.0, 3.0])
    row, t = requests()
    measured = meter().losses(row, t, method, KEY, sampler)
    for i in range(len(row)):
        batch = collate([ROWS[row[i]]], PAD)
        index = torch.arange(batch["input_ids"].shape[1])
        noise = Rows(torch.tensor([i]), len(row), batch["maskable"], index, batch["delimiter"])
        draw = method.draw_at(t[i : i + 1], KEY, noise, sampler)
        noisy, mask, source = draw.noisy(batch["input_ids"], MASK)
        with torch.no_grad():
            nll = ContextModel()(noisy, batch["attention_mask"][source], mask, batch["input_ids"][source]).nll
        expected = row_losses(nll, draw.mask, draw.coefficient, draw.active)
        assert float(measured[i]) == pytest.approx(float(expected), rel=1e-12)


def test_counts_the_forward_rows_of_the_views_in_use():
    row, t = requests()
    done = []
    counting = meter(40)
    counting.progress = done.append
    _, used = counting.view_losses(row, t, Method.parse("mirror", MethodOptions(mirror_below=0.5)), KEY)
    expected = int(24 + (t < 0.5).sum())
    assert counting.forwards == sum(done) == int(used.sum()) == expected
    assert len(done) > 1


def test_leaves_the_model_in_its_mode():
    measuring = meter()
    measuring.model.train()
    measuring.losses(*requests(3), Method.parse("standard"), KEY)
    assert measuring.model.training
