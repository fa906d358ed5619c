"""Divides the work among processes that evaluate together (``accelerate launch``, ``torchrun``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate.state import PartialState

from stabledllm.errors import UserError
from stabledllm.runtime.device import on_cpu
from stabledllm.runtime.lone_process import refuse_lone_process

T = TypeVar("T")
# A rank waits for the slowest one: decoding may take long, so that no shorter wait proves a rank dead.
_PATIENCE = timedelta(days=7)
_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that evaluate together; by default it is alone."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    together: bool = False
    """Whether every rank does all of the work, since the model is sharded over them; only the first one then writes."""

    @classmethod
    def launched(cls, cpu: bool = False) -> Ranks:
        """The ranks that the launcher's environment names; joins their process group where there is one.

        Args:
            cpu: use no accelerator.

        Raises:
            UserError: the ranks do not see each other, so that each would evaluate everything, or the device that was
                asked for is not there.
        """
        refuse_lone_process()
        several = int(os.environ.get("WORLD_SIZE", "1"))
        patience = {"timeout": _PATIENCE} if several > 1 else {}
        state = PartialState(cpu=cpu or on_cpu(), **patience)
        if state.num_processes != several:
            raise UserError(f"launch: expected {several} processes to evaluate together, found {state.num_processes}.")
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def writes(self) -> bool:
        """Whether this process writes the results of its work."""
        return not self.together or self.rank == 0

    @property
    def shares(self) -> int:
        """Number of shares that the work is divided into."""
        return 1 if self.together else self.count

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This process's share of a list that is the same on every rank."""
        return work if self.together else work[self.rank :: self.count]

    def acting_together(self) -> Ranks:
        """The same ranks, for a model that is sharded over them."""
        return replace(self, together=True)

    def agree(self, value: T) -> T:
        """The first rank's value, on every rank; no rank continues before all have called this."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.barrier()
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def leave(self) -> None:
        """End the process group that :meth:`launched` joined, all ranks at once."""
        if self.count > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


ALONE = Ranks()


@contextmanager
def whole_models() -> Iterator[None]:
    """While this context is open, models load whole on every rank, even if the launch configuration shards training."""
    sharding = {name: os.environ.pop(name) for name in _SHARDING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(sharding)
