"""What a model's routers decided in one forward pass, for who balances or reports the experts' load.

Legend: T tokens of the forward, E experts, K experts of a token, R routers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Routing:
    """A router's notebook: nothing is kept unless :func:`recorded` asks for it."""

    def __init__(self, experts: int):
        self.experts = experts
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def record(self, score_TE: Tensor, chosen_TK: Tensor) -> None:
        """Keep a forward's scores of all experts, none negative, and the chosen ones."""
        if self._kept is not None:
            self._kept.append((score_TE, chosen_TK))


def routers(model: nn.Module) -> list[nn.Module]:
    """The routers of a model's layers, first to last; none for a dense model."""
    return [module for module in model.modules() if isinstance(getattr(module, "routing", None), Routing)]


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """Within this context forwards are recorded: for each router its (scores (T, E), chosen (T, K)) by forward.

    A forward that the backward pass repeats, outside of the context, is not recorded again.
    """
    found = [router.routing for router in routers(model)]
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in found]
    for routing, own in zip(found, kept, strict=True):
        routing._kept = own
    try:
        yield kept
    finally:
        for routing in found:
            routing._kept = None
