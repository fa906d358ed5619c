"""Sharded weights that are whole on every rank for a while, so that each rank may run forwards of its own number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from stabledllm.errors import UserError


@contextmanager
def gathered(*models: nn.Module, reshard_after_forward: bool = True) -> Iterator[None]:
    """A context in which every rank holds all weights of models that FSDP2 shards; every rank must open it.

    No backward pass may run inside. A model that is not sharded stays as it is.

    Args:
        reshard_after_forward: what the launch configuration says of the time outside.

    Raises:
        UserError: a version of torch that cannot do so.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [[part for part in model.modules() if isinstance(part, FSDPModule)] for model in models]
    parts = [each for each in parts if each]
    if parts and not hasattr(FSDPModule, "set_reshard_after_forward"):
        raise UserError(
            f"objective.kind=grpo under FSDP: expected torch 2.8 or newer, which keeps weights gathered while "
            f"responses are drawn, found {torch.__version__}; update it, or launch with 'stabledllm cp accelerate/ddp'."
        )
    for each in parts:
        for part in each:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    try:
        yield
    finally:
        for each in parts:
            for part in each:
                part.reshard()
                part.set_reshard_after_forward(reshard_after_forward, recurse=False)
            _keep_for_backward(each[0])


def _keep_for_backward(model: nn.Module) -> None:
    """Leave what a backward pass begins with whole from the forward pass on, as accelerate sets it up."""
    from torch.distributed.fsdp import FSDPModule

    for part in (model, getattr(model, "get_output_embeddings", lambda: None)()):
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
