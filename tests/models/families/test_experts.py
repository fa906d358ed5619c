"""Experts in one grouped product and in segments are the plain loop; what lies together stays each expert's own."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from stabledllm.models.families.experts import Experts, join_experts
from stabledllm.models.families.grouped import as_one, can_group, lay_together, lie_together
from stabledllm.models.families.sorted_tokens import SortedTokens, gated

TOKENS, EXPERTS, CHOSEN, WIDTH, HIDDEN = 40, 6, 2, 16, 8


def looped(experts: Experts, x_TD: Tensor, chosen_TK: Tensor, share_TK: Tensor) -> Tensor:
    out = []
    for token, chosen, share in zip(x_TD, chosen_TK, share_TK, strict=True):
        out.append(sum(s * experts[int(e)](token[None])[0] for e, s in zip(chosen, share, strict=True)))
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
    assert not lie_together([nn.Parameter(torch.empty(0)) for _ in range(2)]), "what is gathered later lies nowhere"
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


def test_gated_is_silu_times_up_to_the_last_bit():
    torch.manual_seed(0)
    gate_up, factor = torch.randn(5, 6, requires_grad=True), torch.randn(5, 3)
    gate, up = gate_up.chunk(2, dim=1)
    plain = nn.functional.silu(gate) * up
    assert torch.equal(gated(gate_up), plain)
    found, expected = (torch.autograd.grad((out * factor).sum(), gate_up)[0] for out in (gated(gate_up), plain))
    assert torch.equal(found, expected)


def test_tokens_are_taken_and_combined():
    """Against torch's own indexing, with gradients; a share's gradient is computed where somebody asks for it."""
    torch.manual_seed(0)
    chosen, share = torch.tensor([[2, 0], [0, 1], [2, 1]]), torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    tokens = SortedTokens.of(chosen, 4)
    assert tokens.counts == [2, 2, 2, 0]
    assert tokens.token_S.tolist() == [0, 1, 1, 2, 0, 2]
    out = tokens.combined(tokens.taken(x) ** 2, share)
    expected = (x[:, None] ** 2 * share[..., None]).sum(1)
    torch.testing.assert_close(out, expected)
    factor = torch.randn(3, 4, dtype=torch.float64)
    both = [torch.autograd.grad((way * factor).sum(), [x, share]) for way in (out, expected)]
    torch.testing.assert_close(*both)
    frozen = tokens.combined(tokens.taken(x) ** 2, share.detach())
    torch.testing.assert_close(torch.autograd.grad((frozen * factor).sum(), x)[0], both[1][0])


ALL = ["gate_proj", "up_proj", "down_proj"]


def adapted(targets, **options):
    """The experts of :func:`problem` with adapters that do something, as peft makes them."""
    experts, *rest = problem()
    model = nn.Module()
    model.experts = experts
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets} | options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    join_experts(model)
    return model, experts, *rest


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped product")
@pytest.mark.parametrize("targets", [ALL, ["up_proj"], ["gate_proj", "down_proj"]], ids="-".join)
def test_adapters_are_grouped_and_are_the_loop_over_pefts_layers(targets):
    model, experts, x, chosen, share = adapted(targets)
    assert experts.grouped(x)
    wanted = [x, share, *(p for p in experts.parameters() if p.requires_grad)]
    assert len(wanted) == 2 + 2 * EXPERTS * len(targets)

    def run(way):
        out = way(x, chosen, share)
        grads = torch.autograd.grad((out**2).sum(), wanted, allow_unused=True, materialize_grads=True)
        return [out, *grads]

    grouped, plain = run(experts), run(lambda *args: looped(experts, *args))
    for found, expected in zip(grouped, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        assert experts.grouped(x)
        base = experts(x, chosen, share)
    assert (grouped[0] - base).abs().max() > 0.01
    torch.testing.assert_close(base, problem()[0](x, chosen, share))


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped product")
def test_dropout_of_adapters_acts_in_training_alone():
    _, experts, x, chosen, share = adapted(ALL, lora_dropout=0.5)
    assert experts.grouped(x)
    torch.manual_seed(1)
    first, second = experts.train()(x, chosen, share), experts(x, chosen, share)
    assert not torch.equal(first, second)
    evaluated = experts.eval()(x, chosen, share)
    torch.testing.assert_close(evaluated, looped(experts, x, chosen, share), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped product")
def test_adapters_stay_together_when_the_model_is_moved():
    _, experts, x, chosen, share = adapted(ALL)
    before = experts(x, chosen, share)
    assert experts.double().float().grouped(x)
    assert torch.equal(experts(x, chosen, share), before)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (["experts.2.up_proj"], {}),  # of one expert
        (ALL, {"use_dora": True}),
        (ALL, {"rank_pattern": {"experts.1.up_proj": 2}}),
        (ALL, {"alpha_pattern": {"experts.1.up_proj": 30}}),
        (ALL, {"lora_bias": True}),
        (ALL, {"r": 3}),  # rows of 12 bytes, which no grouped product takes
    ],
    ids=["one expert", "dora", "ranks", "scales", "biases", "narrow"],
)
def test_other_adapters_take_segments(targets, options):
    _, experts, x, chosen, share = adapted(targets, **options)
    assert experts.grouped(x) is None
    torch.testing.assert_close(experts(x, chosen, share), looped(experts, x, chosen, share), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("state", ["merged", "two at once"])
def test_adapters_in_another_state_take_segments(state):
    """Merged ones are in the weights already, and must not be added again; of two at once each is added."""
    model, experts, x, chosen, share = adapted(ALL)
    before = experts(x, chosen, share)
    if state == "merged":
        model.merge_adapter()
    else:
        model.add_adapter("second", LoraConfig(r=4, target_modules=ALL, init_lora_weights=False))
        model.base_model.set_adapter(["default", "second"])
    assert experts.grouped(x) is None
    after = experts(x, chosen, share)
    torch.testing.assert_close(after, looped(experts, x, chosen, share), rtol=1e-4, atol=1e-5)
    assert torch.allclose(after, before, rtol=1e-3, atol=1e-4) == (state == "merged")
