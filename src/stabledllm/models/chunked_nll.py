"""Output layer and cross-entropy together, in chunks of tokens: all logits are never stored.

One pass over the logits serves forward and backward. With logits z_i of token i and e_i = softmax(z_i) - onehot(y_i),
the loss ``sum_i g_i nll_i`` has the gradient ``g_i W'e_i`` in h_i, whose factor g_i can be applied later, and
``sum_i g_i e_i h_i'`` in W, which needs the g_i beforehand. A training loop knows them up to one factor (coefficient
and row weight), so it hands them in as ``weights``; without them, or where they turn out not to be proportional to the
true g, backward computes the logits a second time.

Legend: S tokens, D width, V vocabulary.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._triton import has_triton

from stabledllm.models.loss_head import widened

CHUNK_BYTES = 2**28
"""Of float32 logits that are held at once. Every chunk reads and writes the whole weight's gradient: not too few."""
_PROPORTIONAL = 1e-4
"""Largest part by which true factors may leave the proportion of the weights handed in; float32 rounding is 1e-7."""


def chunk_of(vocabulary: int) -> int:
    """Tokens whose logits are held at once."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


@torch.compiler.disable
def cross_entropies(
    hidden_SD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_S: Tensor,
    *,
    weights_S: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """``-log softmax(h W' + b)`` at the targets in nats, float32 or wider, shape (S,).

    Equal to the plain computation in value and every gradient. Products are taken in the layer's dtype, softmax and
    sums in float32 (float64 for float64). No more than ``chunk`` rows of logits are held at once. For S = 0 the
    result is empty and still carries (zero) gradients.

    Args:
        weights_S: what each cross-entropy will be multiplied by in the loss, up to a common factor. Changes no result:
            it spares backward a second pass over the logits where the weight's gradient is wanted.
        chunk: tokens at once; by default as many as :data:`CHUNK_BYTES` allows.
    """
    if torch.is_autocast_enabled(hidden_SD.device.type):
        dtype = torch.get_autocast_dtype(hidden_SD.device.type)
        hidden_SD, weight_VD = hidden_SD.to(dtype), weight_VD.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    if chunk is None:
        chunk = chunk_of(len(weight_VD))
    return _ChunkedCrossEntropy.apply(hidden_SD, weight_VD, bias_V, targets_S, weights_S, chunk)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, weights, chunk):
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        nll = hidden.new_empty(len(hidden), dtype=wide)
        ctx.hidden_grad = torch.empty_like(hidden) if of_hidden else None
        known = weights is not None
        ctx.weight_grad = weight.new_zeros(weight.shape, dtype=wide) if of_weight and known else None
        ctx.bias_grad = weight.new_zeros(len(weight), dtype=wide) if of_bias and known else None
        for part in _chunks(len(hidden), chunk):
            nll[part], error = _errors(hidden[part], weight, bias, targets[part], any(ctx.needs_input_grad))
            if of_hidden:
                ctx.hidden_grad[part] = error.to(hidden.dtype) @ weight
            if (of_weight or of_bias) and known:
                _accumulate(ctx, error.mul_(weights[part, None].to(wide)), hidden[part])
        ctx.save_for_backward(hidden, weight, bias, targets, weights)
        ctx.chunk = chunk
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, targets, weights = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        found = [None, None, None]
        if of_hidden:
            found[0] = ctx.hidden_grad * grad[:, None].to(hidden.dtype)
        if of_weight or of_bias:
            factor = _factor(grad, weights) if ctx.weight_grad is not None or ctx.bias_grad is not None else None
            if factor is None:
                ctx.weight_grad = weight.new_zeros(weight.shape, dtype=grad.dtype) if of_weight else None
                ctx.bias_grad = weight.new_zeros(len(weight), dtype=grad.dtype) if of_bias else None
                for part in _chunks(len(hidden), ctx.chunk):
                    _, error = _errors(hidden[part], weight, bias, targets[part], True)
                    _accumulate(ctx, error.mul_(grad[part, None]), hidden[part])
                factor = 1.0
            # Handed over and not kept: a second backward through the same graph computes its logits again.
            for i, name in ((1, "weight_grad"), (2, "bias_grad")):
                if (made := getattr(ctx, name)) is not None:
                    found[i] = made.mul_(factor).to(weight.dtype)
                    setattr(ctx, name, None)
        return *found, None, None, None


def _chunks(size: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, size, chunk)]


def _errors(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropies of a chunk, and softmax less one-hot in the place of its logits where wanted."""
    finish = _fused() if hidden.is_cuda and has_triton() else _finish
    return finish(F.linear(hidden, weight, bias), targets, wanted)


@lru_cache
def _fused():
    """:func:`_finish` as one kernel. Ready-made fused heads (Liger's, PyTorch's ``linear_cross_entropy``) multiply all
    tokens by one factor, so that their gradients are wrong where every token has a weight of its own."""
    return torch.compile(_finish, dynamic=True)


def _finish(logits: Tensor, targets: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    # One exponential serves both, in the logits' own memory.
    logits = widened(logits)
    logits = logits.sub_(logits.amax(-1, keepdim=True))
    of_target = logits.gather(1, targets[:, None])[:, 0]
    total = logits.exp_().sum(-1)
    nll = total.log() - of_target
    if not wanted:
        return nll, None
    error = logits.div_(total[:, None])
    error[torch.arange(len(error), device=error.device), targets] -= 1.0
    return nll, error


def _accumulate(ctx, error: Tensor, hidden: Tensor) -> None:
    """Add a chunk's part of the gradients in the head's weight and bias, in float32 (float64)."""
    if ctx.weight_grad is not None:
        if hidden.dtype == error.dtype:
            ctx.weight_grad.addmm_(error.T, hidden)
        else:
            ctx.weight_grad += error.to(hidden.dtype).T @ hidden
    if ctx.bias_grad is not None:
        ctx.bias_grad += error.sum(0)


def _factor(grad: Tensor, weights: Tensor) -> Tensor | float | None:
    """c with ``grad = c weights``, or None where there is none."""
    weights = weights.to(grad.dtype)
    square = weights @ weights
    if not len(grad) or not bool(grad.any()):
        return 0.0
    factor = (grad @ weights) / square
    off = (grad - factor * weights).abs().max()
    return factor if bool(off <= _PROPORTIONAL * grad.abs().max()) else None
