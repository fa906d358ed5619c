"""Output layer and cross-entropy together, in chunks of tokens: all logits are never stored.

One pass over the logits serves forward and backward. With logits z_i of token i and e_i = softmax(z_i) - onehot(y_i),
the loss ``sum_i g_i nll_i`` has the gradient ``g_i W'e_i`` in h_i, whose factor g_i can be applied later, and
``sum_i g_i e_i h_i'`` in W, which needs the g_i beforehand. A training loop knows them up to one factor (coefficient
and row weight), so it hands them in as ``weights``; without them, or where they turn out not to be proportional to the
true g, backward computes the logits a second time.

Legend: S tokens, D width, V vocabulary.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._triton import has_triton

from stabledllm.models.loss_head import widened

CHUNK_BYTES = 2**28
"""Bytes of float32 logits held at once. Not too few: every chunk reads and writes the whole weight's gradient."""
_PROPORTIONAL = 1e-4
"""Largest relative deviation of the true factors from proportionality to the given weights; float32 rounds by 1e-7."""


def chunk_of(vocabulary: int) -> int:
    """The number of tokens whose logits are held at once."""
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
        weights_S: the loss's weight of each cross-entropy, up to a common factor. They change no result: they
            spare backward a second pass over the logits where the weight's gradient is wanted.
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
        weighted = weights is not None
        ctx.weight_grad = weight.new_zeros(weight.shape, dtype=wide) if of_weight and weighted else None
        ctx.bias_grad = weight.new_zeros(len(weight), dtype=wide) if of_bias and weighted else None
        for part in _chunks(len(hidden), chunk):
            nll[part], error = _errors(hidden[part], weight, bias, targets[part], any(ctx.needs_input_grad))
            if of_hidden:
                ctx.hidden_grad[part] = error.to(hidden.dtype) @ weight
            if (of_weight or of_bias) and weighted:
                _accumulate(ctx, error.mul_(weights[part, None].to(wide)), hidden[part])
        ctx.save_for_backward(hidden, weight, bias, targets, weights)
        ctx.chunk = chunk
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, targets, weights = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        grads = [None, None, None]
        if of_hidden:
            grads[0] = ctx.hidden_grad * grad[:, None].to(hidden.dtype)
        if of_weight or of_bias:
            factor = _factor(grad, weights) if ctx.weight_grad is not None or ctx.bias_grad is not None else None
            if factor is None:
                ctx.weight_grad = weight.new_zeros(weight.shape, dtype=grad.dtype) if of_weight else None
                ctx.bias_grad = weight.new_zeros(len(weight), dtype=grad.dtype) if of_bias else None
                for part in _chunks(len(hidden), ctx.chunk):
                    _, error = _errors(hidden[part], weight, bias, targets[part], True)
                    _accumulate(ctx, error.mul_(grad[part, None]), hidden[part])
                factor = 1.0
            # Given away, not stored: a second backward through the same graph computes its logits again.
            for i, name in ((1, "weight_grad"), (2, "bias_grad")):
                if (total := getattr(ctx, name)) is not None:
                    grads[i] = total.mul_(factor).to(weight.dtype)
                    setattr(ctx, name, None)
        return *grads, None, None, None


def _chunks(size: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, size, chunk)]


def _errors(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, with_errors: bool
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropies of a chunk and, if asked, softmax minus one-hot, in the memory of its logits."""
    finish = _fused() if hidden.is_cuda and has_triton() else _finish
    return finish(F.linear(hidden, weight, bias), targets, with_errors)


@lru_cache
def _fused():
    """:func:`_finish` as one kernel. Ready-made fused heads (Liger's, PyTorch's ``linear_cross_entropy``) multiply all
    tokens by one factor, so that their gradients are wrong where every token has a weight of its own.

    On a machine that cannot compile (Triton wants a C compiler) it is :func:`_finish` itself, and a warning says so.
    """
    compiled, can_compile = torch.compile(_finish, dynamic=True), True

    def finish(*given):
        nonlocal can_compile
        if can_compile:
            try:
                return compiled(*given)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # torch names no one class for what its compiler and Triton raise
                can_compile = False
                reason = " ".join(str(error).split())[:200]
                warnings.warn(
                    f"the loss head's kernel does not compile here, so it runs unfused: {reason}", stacklevel=2
                )
        return _finish(*given)

    return finish


def _finish(logits: Tensor, targets: Tensor, with_errors: bool) -> tuple[Tensor, Tensor | None]:
    # One exponential serves both, in the logits' own memory.
    logits = widened(logits)
    logits = logits.sub_(logits.amax(-1, keepdim=True))
    of_target = logits.gather(1, targets[:, None])[:, 0]
    total = logits.exp_().sum(-1)
    nll = total.log() - of_target
    if not with_errors:
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
    """The c with ``grad = c weights``, or None where there is none."""
    weights = weights.to(grad.dtype)
    square = weights @ weights
    if not len(grad) or not bool(grad.any()):
        return 0.0
    factor = (grad @ weights) / square
    off = (grad - factor * weights).abs().max()
    return factor if bool(off <= _PROPORTIONAL * grad.abs().max()) else None
