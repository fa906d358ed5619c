"""The output layer of a model where only some positions carry loss: cross-entropies there, never all logits.

The chunked computation is imported where it is called: it imports torch's compiler, which takes as long as the rest of
torch, and a model of one's own never comes here.

Legend: S tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WHOLE = ContextVar("whole logits", default=False)


class OutputLayer(nn.Linear):
    """``nn.Linear`` that with ``targets`` gives cross-entropies (S,) in nats in place of logits.

    It is called as a module, so that FSDP2 and ZeRO-3, which gather sharded weights around a module's call, do so
    here. Weights, names and the form without targets are those of ``nn.Linear``.
    """

    def forward(self, input: Tensor, targets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        if targets is None:
            return super().forward(input)
        from stabledllm.models.chunked_nll import cross_entropies

        return cross_entropies(input, self.weight, self.bias, targets, weights_S=weights)


@contextmanager
def whole_logits() -> Iterator[None]:
    """A context in which :func:`head_nll` makes all logits as the head's output, so that hooks on the head see them."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


def head_nll(head: nn.Module, hidden_SD: Tensor, targets_S: Tensor, weights_S: Tensor | None = None) -> Tensor:
    """Cross-entropies (S,) through a model's output layer, whatever kind of layer it is.

    An :class:`OutputLayer` works in chunks, as does a plain linear layer. Others (an adapter around the head, several
    layers) give all logits of the S positions first.
    """
    if not _WHOLE.get():
        if isinstance(head, OutputLayer):
            return head(hidden_SD, targets_S, weights_S)
        if type(head) is nn.Linear:
            from stabledllm.models.chunked_nll import cross_entropies

            return cross_entropies(hidden_SD, head.weight, head.bias, targets_S, weights_S=weights_S)
    return F.cross_entropy(widened(head(hidden_SD)), targets_S, reduction="none")


def widened(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 if that is their dtype."""
    return logits if logits.dtype == torch.float64 else logits.float()
