"""Whether numbers are finite; whoever makes a figure of them asks here first."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from stabledllm.errors import NotFinite


def require_finite(values: Tensor, what: str) -> None:
    """Pass silently, or refuse.

    Args:
        what: for the sentence, such as ``the losses of 'tiny' on train.jsonl:3``.

    Raises:
        NotFinite: naming the first value that is NaN or infinite, and how many there are.
    """
    values = values.detach()
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise NotFinite(
            f"{what}: expected finite numbers, found {float(values[bad][0])} ({int(bad.sum())} of {values.numel()})."
        )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every floating-point value of many tensors is finite; one pass over them, no copy.

    Of a tensor that is split over ranks the whole is meant where the tensor knows it, else this rank's part.
    """
    floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floats:
        return True
    largest = get_total_norm(floats, norm_type=math.inf)
    largest = largest.full_tensor() if hasattr(largest, "full_tensor") else largest
    return bool(torch.isfinite(largest))
