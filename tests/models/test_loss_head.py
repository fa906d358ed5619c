"""The chunked head equals the plain computation in value and every gradient, and never holds all logits."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stabledllm.loss import nll_weights, reduce_loss, row_losses
from stabledllm.models import chunked_nll
from stabledllm.models.chunked_nll import cross_entropies
from stabledllm.models.loss_head import OutputLayer, head_nll, whole_logits
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key

S, D, V = 37, 12, 53


def inputs(dtype=torch.float64, bias: bool = True, seed: int = 0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(0, V, (S,), generator=g)
    factors = torch.rand(S, generator=g, dtype=torch.float64) * 3
    return normal(S, D), normal(V, D), normal(V) if bias else None, targets, factors


def gradients(nll, factors, wanted):
    return torch.autograd.grad((nll * factors.to(nll.dtype)).sum(), [w for w in wanted if w is not None])


def plain(hidden, weight, bias, targets):
    logits = F.linear(hidden, weight, bias)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, reduction="none")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 100, None])
@pytest.mark.parametrize("hint", ["none", "right", "in proportion", "wrong"])
def test_equals_the_plain_computation(hint, chunk, bias):
    hidden, weight, b, targets, factors = inputs(bias=bias)
    hints = {"none": None, "right": factors, "in proportion": factors / 7, "wrong": factors.flip(0)}
    nll = cross_entropies(hidden, weight, b, targets, weights_S=hints[hint], chunk=chunk)
    expected = plain(hidden, weight, b, targets)
    torch.testing.assert_close(nll, expected)
    for found, exact in zip(
        gradients(nll, factors, (hidden, weight, b)), gradients(expected, factors, (hidden, weight, b)), strict=True
    ):
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_narrow_layers_sum_in_float32(dtype, tolerance):
    hidden, weight, _, targets, factors = inputs(dtype)
    nll = cross_entropies(hidden, weight, None, targets, weights_S=factors, chunk=5)
    assert nll.dtype == torch.float32
    exact_inputs = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = plain(*exact_inputs, None, targets)
    assert float((nll - exact).detach().abs().max()) < tolerance * float(exact.abs().max())
    for found, true in zip(
        gradients(nll, factors, (hidden, weight)), gradients(exact, factors, exact_inputs), strict=True
    ):
        assert found.dtype == dtype
        assert float((found.double() - true).norm()) < tolerance * float(true.norm())


def test_nothing_selected_is_a_zero_with_gradients():
    hidden, weight, b, targets, factors = inputs()
    nll = cross_entropies(hidden[:0], weight, b, targets[:0], weights_S=factors[:0])
    assert nll.shape == (0,)
    nll.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in (hidden, weight, b))


def test_frozen_and_tied_heads():
    hidden, weight, _, targets, factors = inputs()
    frozen = weight.detach()
    nll = cross_entropies(hidden, frozen, None, targets, chunk=4)
    expected = gradients(plain(hidden, frozen, None, targets), factors, (hidden,))
    torch.testing.assert_close(gradients(nll, factors, (hidden,)), expected)
    ids = torch.arange(S) % V
    tied = cross_entropies(weight[ids].tanh(), weight, None, targets, weights_S=factors, chunk=4)
    expected = plain(weight[ids].tanh(), weight, None, targets)
    torch.testing.assert_close(gradients(tied, factors, (weight,)), gradients(expected, factors, (weight,)))


def test_backward_twice_is_right_and_of_second_order_is_refused():
    hidden, weight, _, targets, factors = inputs()
    loss = (cross_entropies(hidden, weight, None, targets, weights_S=factors, chunk=4) * factors).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = [x.clone() for x in first]
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), tuple(kept))
    loss = (cross_entropies(hidden, weight, None, targets) * factors.requires_grad_()).sum()
    (of_hidden,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_hidden.sum().backward()


def test_autocast():
    hidden, weight, _, targets, factors = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        nll = cross_entropies(hidden, weight, None, targets, weights_S=factors)
        logits = F.linear(hidden, weight)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(nll, F.cross_entropy(logits.float(), targets, reduction="none"))
    assert all(g.dtype == torch.float32 for g in gradients(nll, factors, (hidden, weight)))


def test_any_kind_of_output_layer():
    hidden, weight, b, targets, _ = inputs()
    expected = plain(hidden, weight, b, targets)
    for layer in (OutputLayer(D, V), nn.Linear(D, V), nn.Sequential(nn.Linear(D, V))):
        layer.double()
        own = layer[0] if isinstance(layer, nn.Sequential) else layer
        own.weight.data, own.bias.data = weight.detach(), b.detach()
        torch.testing.assert_close(head_nll(layer, hidden, targets), expected)
        seen = []
        hook = layer.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output.shape))
        with whole_logits():
            torch.testing.assert_close(head_nll(layer, hidden, targets), expected)
        hook.remove()
        assert seen == [(S, V)]


class Largest(TorchDispatchMode):
    """The most elements that any one tensor had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_all_logits_are_never_held():
    hidden, weight, _, targets, factors = inputs(torch.float32)
    with Largest() as seen:
        nll = cross_entropies(hidden, weight, None, targets, weights_S=factors, chunk=4)
        gradients(nll, factors, (hidden, weight))
    assert seen.elements == max(V * D, 4 * V) < S * V


def tiny(dtype=torch.float64) -> TinyMDM:
    torch.manual_seed(0)
    config = TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=24)
    return TinyMDM(config).to(dtype)


@pytest.mark.parametrize("method", ["standard", "mirror", "fixedcount+partition3"])
def test_a_training_steps_gradient_is_the_plain_one(method):
    model, ids = tiny(), torch.randint(0, 250, (5, 12), generator=torch.Generator().manual_seed(1))
    maskable = torch.arange(12)[None].expand(5, -1) >= torch.tensor([[2], [4], [6], [8], [10]])
    rows, objective = Rows(torch.arange(5), 5, maskable, torch.arange(12)), Objective()
    draw = Method.parse(method, objective=objective).draw(Key(3, 0), rows, Uniform())
    noisy, mask, source = draw.noisy(ids, 256)
    row_weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    found = []
    for weights in (nll_weights(draw.mask, draw.coefficient, draw.active, row_weight), None):
        model.zero_grad()
        nll = model(noisy, selected=mask, targets=ids[source], nll_weights=weights).nll
        reduce_loss(row_losses(nll, draw.mask, draw.coefficient, draw.active), row_weight, 4.5).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad()
    logits = model(noisy).logits[mask]
    nll = F.cross_entropy(logits, ids[source][mask], reduction="none")
    reduce_loss(row_losses(nll, draw.mask, draw.coefficient, draw.active), row_weight, 4.5).backward()
    for name, with_hint, without, p in zip(dict(model.named_parameters()), *found, model.parameters(), strict=True):
        torch.testing.assert_close(with_hint, p.grad, msg=name)
        torch.testing.assert_close(without, p.grad, msg=name)


def test_the_hint_of_a_training_step_is_in_proportion(monkeypatch):
    """Backward must not need a second pass over the logits."""
    model, calls = tiny(), []
    true = chunked_nll._errors
    monkeypatch.setattr(chunked_nll, "_errors", lambda *args: calls.append(1) or true(*args))
    ids = torch.randint(0, 250, (4, 9), generator=torch.Generator().manual_seed(2))
    rows, objective = Rows(torch.arange(4), 4, torch.ones(4, 9, dtype=torch.bool), torch.arange(9)), Objective()
    draw = Method.parse("mirror", objective=objective).draw(Key(3, 0), rows, Uniform())
    noisy, mask, source = draw.noisy(ids, 256)
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    hint = nll_weights(draw.mask, draw.coefficient, draw.active, weight)
    out = model(noisy, selected=mask, targets=ids[source], nll_weights=hint)
    (3 * reduce_loss(row_losses(out.nll, draw.mask, draw.coefficient, draw.active), weight, 4.0)).backward()
    assert len(calls) == 1


def test_the_fused_kernel_is_the_plain_computation_and_where_it_does_not_compile_that_runs(monkeypatch):
    def logits() -> torch.Tensor:
        return torch.randn(5, 40, generator=torch.Generator().manual_seed(3)).bfloat16()

    targets = torch.tensor([0, 3, 39, 7, 7])
    expected = chunked_nll._finish(logits(), targets, True)

    def broken(function, **_):
        def call(*_):
            raise RuntimeError("Failed to find C compiler.")

        return call

    for compiler in (lambda function, **_: function, broken):
        monkeypatch.setattr(torch, "compile", compiler)
        chunked_nll._fused.cache_clear()
        finish = chunked_nll._fused()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                assert all(map(torch.equal, finish(logits(), targets, True), expected))
        assert [str(one.message)[-26:] for one in said] == ["Failed to find C compiler."] * (compiler is broken)
    chunked_nll._fused.cache_clear()


def test_memory_that_runs_out_in_the_fused_kernel_is_not_taken_for_a_missing_compiler(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "compile", lambda function, **_: full)
    chunked_nll._fused.cache_clear()
    with pytest.raises(torch.OutOfMemoryError):
        chunked_nll._fused()(torch.zeros(1, 4), torch.tensor([0]), False)
    chunked_nll._fused.cache_clear()
