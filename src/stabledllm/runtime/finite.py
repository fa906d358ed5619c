"""Checks that numbers are finite, before any figure is made of them."""

from __future__ import annotations

import torch
from torch import Tensor

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
