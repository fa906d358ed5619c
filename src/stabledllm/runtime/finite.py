"""Checks that numbers are finite, before any figure is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from stabledllm.errors import NotFinite


def require_finite(values: Tensor, what: str) -> None:
    """Refuse values that are not all finite.

    Args:
        what: names the values in the sentence, such as ``the losses of 'tiny' on train.jsonl:3``.

    Raises:
        NotFinite: names the first value that is NaN or infinite, and how many there are.
    """
    values = values.detach()
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise NotFinite(
            f"{what}: expected finite numbers, found {float(values[bad][0])} ({int(bad.sum())} of {values.numel()})."
        )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every floating-point value of many tensors is finite, in one pass and without a copy.

    A tensor that is sharded over ranks counts as a whole if it can gather itself, else by this rank's part.
    """
    floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floats:
        return True
    largest = get_total_norm(floats, norm_type=math.inf)
    largest = largest.full_tensor() if hasattr(largest, "full_tensor") else largest
    return bool(torch.isfinite(largest))
