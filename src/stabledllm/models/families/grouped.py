"""Matrix products of many experts at once: weights that lie together in memory, and torch's grouped product over them.

Each expert keeps parameters of its own, by the hub's names; only their memory is shared. So checkpoints, adapters and
optimizers see what the original code has, and one product sees a single tensor, without a copy.

Legend: E experts, S tokens sorted by expert, A and B widths of a layer's input and output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ALIGNED = 16
"""Bytes that the length of a row must be a multiple of, for torch's grouped product."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lay_together(weights: Sequence[nn.Parameter]) -> None:
    """Move the values of parameters of one shape into one block of memory, each at its place in the order given.

    Parameters that another library lays out (sharded, quantised) or that have no values yet are left as they are.
    """
    if any(type(weight) is not nn.Parameter or weight.is_meta for weight in weights) or lie_together(weights):
        return
    if len({(weight.dtype, weight.device, weight.shape) for weight in weights}) > 1:
        return
    block = torch.stack([weight.detach() for weight in weights])
    for weight, part in zip(weights, block, strict=True):
        weight.data = part


def lie_together(weights: Sequence[Tensor]) -> bool:
    """Whether parameters are consecutive parts of one block of memory."""
    first, last, count = weights[0], weights[-1], len(weights)
    # Asked in every forward pass, of hundreds of parameters, and hence without a loop of Python's.
    if set(map(type, weights)) != {nn.Parameter} or first.is_meta or not first.numel():
        return False  # DeepSpeed's third stage leaves parameters empty until their layer is called
    step, start = first.numel() * first.element_size(), first.data_ptr()
    return (
        first.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
        and list(map(Tensor.data_ptr, weights)) == list(range(start, start + count * step, step))
        and all(map(Tensor.is_contiguous, weights))
    )


def as_one(weights: Sequence[nn.Parameter]) -> Tensor:
    """The parameters that :func:`lay_together` laid together as one tensor (E, B, A); nothing is copied.

    Its gradient is each parameter's own.
    """
    return _AsOne.apply(*weights)


class _AsOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *weights: Tensor) -> Tensor:
        first = weights[0]
        shape, stride = (len(weights), *first.shape), (first.numel(), *first.stride())
        return first.new_empty(0).set_(first.untyped_storage(), first.storage_offset(), shape, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = gradient.unbind(0)
        return tuple(part if needed else None for part, needed in zip(parts, ctx.needs_input_grad, strict=True))


def can_group(dtype: torch.dtype, device: torch.device, widths: Sequence[int]) -> bool:
    """Whether torch has a grouped product, with its gradients, for this dtype, this device and rows of these widths."""
    if not hasattr(F, "grouped_mm") or dtype not in _DTYPES or device.type not in ("cpu", "cuda"):
        return False
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if torch.compiler.is_compiling():  # memory that parameters share is nothing that a graph knows
        return False
    return all(width * dtype.itemsize % _ALIGNED == 0 for width in widths)


def grouped_linear(x_SA: Tensor, weight_EBA: Tensor, ends_E: Tensor) -> Tensor:
    """Each expert's linear layer on its own tokens, those from the previous expert's end to ``ends_E`` (int32); (S, B).

    The gradient that flows into it must be dense: torch takes no expanded one.
    """
    return F.grouped_mm(x_SA, weight_EBA.transpose(1, 2), offs=ends_E)
