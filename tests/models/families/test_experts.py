"""Experts in one grouped product and in segments are the plain loop; what lies together stays each expert's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stabledllm.models.families.experts import Experts
from stabledllm.models.families.grouped import as_one, can_group, lay_together, lie_together

TOKENS, EXPERTS, CHOSEN, WIDTH, HIDDEN = 40, 6, 2, 16, 8


def looped(experts: Experts, x_TD: Tensor, chosen_TK: Tensor, share_TK: Tensor) -> Tensor:
    out = []
    for token, chosen, share in zip(x_TD, chosen_TK, share_TK, strict=True):
        out.append(sum(s * experts[int(e)](token) for e, s in zip(chosen, share, strict=True)))
    return torch.stack(out)


def problem(dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    experts = Experts(EXPERTS, WIDTH, HIDDEN).to(dtype)
    x = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    scores = torch.randn(TOKENS, EXPERTS, dtype=dtype)
    scores[:, 4] = -9  # no token chooses it
    share, chosen = scores.softmax(-1).topk(CHOSEN)
    return experts, x, chosen, share.requires_grad_()


def results(run, experts, x, chosen, share) -> list[Tensor]:
    """The output, and the gradients of tokens, shares and every weight."""
    out = run(x, chosen, share)
    wanted = [x, share, *experts.parameters()]
    return [out, *torch.autograd.grad((out**2).sum(), wanted, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize(("dtype", "grouped"), [(torch.float32, True), (torch.float64, False)])
def test_both_ways_are_the_loop(dtype, grouped):
    experts, *rest = problem(dtype)
    assert bool(experts.grouped(rest[0])) == (grouped and hasattr(torch.nn.functional, "grouped_mm"))
    expected = results(lambda *args: looped(experts, *args), experts, *rest)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for found, plain in zip(results(experts, experts, *rest), expected, strict=True):
        torch.testing.assert_close(found, plain, **tolerance)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped product")
def test_the_two_ways_are_each_other(monkeypatch):
    experts, *rest = problem()
    one = results(experts, experts, *rest)
    monkeypatch.setattr(experts, "grouped", lambda _: None)
    for found, plain in zip(one, results(experts, experts, *rest), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    assert not any(gradient.any() for gradient in one[3 + 4 * 3 : 3 + 5 * 3]), (
        "an expert without tokens has a gradient, of zeros"
    )


def test_under_autocast_both_compute_in_bfloat16(monkeypatch):
    experts, x, chosen, share = problem()
    with torch.autocast("cpu", torch.bfloat16):
        one = experts(x, chosen, share)
        monkeypatch.setattr(experts, "grouped", lambda _: None)
        other = experts(x, chosen, share)
    assert one.dtype == other.dtype
    torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)
    assert not torch.equal(one, looped(experts, x, chosen, share)), "in float32 it would be"


def test_weights_stay_together_through_casts_and_copies_but_are_each_experts_own():
    experts, x, chosen, share = problem()
    moved = experts.to(torch.float64).to(torch.float32)
    assert can_group(x.dtype, x.device, moved.widths) == bool(moved.grouped(x))
    assert torch.equal(moved(x, chosen, share), experts(x, chosen, share))
    torch.testing.assert_close(copy.deepcopy(experts)(x, chosen, share), experts(x, chosen, share))
    with torch.no_grad():
        experts[2].up_proj.weight.zero_()
    assert experts[1].up_proj.weight.any()
    assert experts[3].gate_proj.weight.any()
    expected = looped(experts, x, chosen, share)
    torch.testing.assert_close(experts(x, chosen, share), expected, rtol=1e-5, atol=1e-5)


def test_a_replaced_layer_is_called(monkeypatch):
    """As adapters replace layers: one that doubles what the expert's layer gives."""
    experts, x, chosen, share = problem()

    class Doubled(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return 2 * self.layer(x)

    before = experts(x, chosen, share)
    for expert in experts:
        expert.down_proj = Doubled(expert.down_proj)
    assert experts.grouped(x) is None
    torch.testing.assert_close(experts(x, chosen, share), 2 * before, rtol=1e-5, atol=1e-5)


def test_parameters_of_another_library_are_left_alone():
    class Sharded(nn.Parameter):
        pass

    weights = [nn.Parameter(torch.randn(2, 3)), Sharded(torch.randn(2, 3))]
    before = [weight.data_ptr() for weight in weights]
    lay_together(weights)
    assert [weight.data_ptr() for weight in weights] == before
    assert not lie_together(weights)
    odd = [nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(3, 2))]
    lay_together(odd)
    assert not lie_together(odd)


def test_as_one_copies_nothing_and_gives_each_its_gradient():
    weights = [nn.Parameter(torch.randn(2, 3)) for _ in range(3)]
    weights[1].requires_grad_(False)
    lay_together(weights)
    one = as_one(weights)
    assert one.data_ptr() == weights[0].data_ptr()
    assert torch.equal(one.detach(), torch.stack([weight.detach() for weight in weights]))
    factor = torch.arange(18.0).view(3, 2, 3)
    (one * factor).sum().backward()
    assert torch.equal(weights[0].grad, factor[0])
    assert weights[1].grad is None
    assert torch.equal(weights[2].grad, factor[2])
