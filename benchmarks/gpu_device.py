"""All that a benchmark asks of a device, behind one small seam: a GPU, or the CPU for a rehearsal at a small shape."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PEAK_FLOPS = {
    "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12,
}  # fmt: skip
"""Dense bfloat16 operations per second by the vendor's data sheets, by a part of the device's name."""


@dataclass
class Memory:
    """Bytes that were allocated before, and at most while something ran."""

    resident: int = 0
    peak: int = 0


class Device:
    """The CPU: everything a benchmark asks of a device, at no speed that means anything."""

    kind = torch.device("cpu")
    compiler = "aot_eager"
    """The back end of ``torch.compile``; this one needs no C++ compiler."""
    name = "cpu"
    total_bytes: int | None = None

    @property
    def peak_flops(self) -> float | None:
        """Dense bfloat16 operations per second; None for a device that the table does not know."""
        return next((flops for part, flops in PEAK_FLOPS.items() if part in self.name), None)

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    def free(self) -> None:
        """Give back what nobody holds."""
        gc.collect()

    def optimizer(self, parameters) -> torch.optim.Optimizer:
        """AdamW, as training makes it on this device; the rate is too small to change a bfloat16 weight by much."""
        return torch.optim.AdamW(parameters, lr=1e-7)

    @contextmanager
    def watching(self, held: Callable[[], Iterator[Tensor]]) -> Iterator[Memory]:
        """Memory while the context runs; ``held`` gives the tensors that are there for good."""
        memory = Memory(
            resident=sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held()}.values())
        )
        with AliveBytes() as seen:
            yield memory
        memory.peak = memory.resident + seen.peak


class CUDADevice(Device):
    """The current NVIDIA (or AMD) GPU."""

    compiler = "inductor"

    def __init__(self):
        self.kind = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.kind)
        self.total_bytes = torch.cuda.get_device_properties(self.kind).total_memory

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.kind)

    def free(self) -> None:
        super().free()
        torch.cuda.empty_cache()

    def optimizer(self, parameters) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-7, fused=True)

    @contextmanager
    def watching(self, held: Callable[[], Iterator[Tensor]]) -> Iterator[Memory]:
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.kind)
        memory = Memory(resident=torch.cuda.memory_allocated(self.kind))
        yield memory
        self.synchronize()
        memory.peak = torch.cuda.max_memory_allocated(self.kind)


def random_weights(model: nn.Module, device: torch.device, std: float) -> nn.Module:
    """Put a model that was made on ``meta`` onto a device, drawing its weights there: matrices normal, norms 1."""
    model.to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.fill_(1.0)
    model.tie_weights()
    return model


class AliveBytes(TorchDispatchMode):
    """The most bytes of storage alive at once of those that were made inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in given:
                    self._follow(storage)
        return out

    def _follow(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone() -> None:
            self.known.discard(key)
            self.alive -= size

        weakref.finalize(storage, gone)
