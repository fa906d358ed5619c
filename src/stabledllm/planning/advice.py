"""Whether a run fits a device, and the cheapest change that makes it fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from stabledllm.config.recipe import resolve
from stabledllm.config.settings import LoRASettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.shapes import Shape
from stabledllm.planning.memory import GIB, Layout, Memory, checkpointing, estimate, micro_batch


@dataclass(frozen=True)
class Change:
    """One thing to do differently, in the words of the command line."""

    words: str
    settings: TrainSettings
    layout: Layout


def gib(size: float) -> str:
    """``12.3 GiB``."""
    return f"{size / GIB:.1f} GiB"


def parse_memory(text: str) -> float:
    """Bytes of ``80GiB``, ``80GB`` or ``80`` (GiB).

    Raises:
        UserError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB|)\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"plan: expected a memory such as 80GiB, found '{text}'.")
    unit = {"": GIB, "gib": GIB, "gb": 1e9, "mib": 2**20, "mb": 1e6}[found[2].lower()]
    return float(found[1]) * unit


def refusal(memory: Memory, limit: float, what: str) -> str:
    """The estimate in one clause."""
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "buffers": memory.gathered,
        "activations": memory.activations,
        "loss head": memory.loss_head,
        "reserve": memory.reserve,
    }
    listed = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size >= 0.05 * GIB)
    return f"{what} needs about {gib(memory.needed)} per device ({listed}), found {gib(limit)}"


def cheapest_change(
    settings: TrainSettings, shape: Shape, layout: Layout, limit: float
) -> tuple[Change, Memory] | None:
    """The first change, in order of cost, after which the run fits; its words name all that it takes.

    First what leaves every number as it is: fewer rows at a time, activations recomputed, state divided over the same
    devices, state in the host's memory. Then LoRA, which is another training, and LoRA on a 4-bit base.
    """
    for change in _changes(settings, layout):
        memory = estimate(change.settings, shape, change.layout)
        if memory.needed <= limit:
            return change, memory
    return None


def _changes(settings: TrainSettings, layout: Layout) -> Iterator[Change]:
    """Alone or together, the cheaper ones first."""
    activations = list(_fewer_activations(Change("", settings, layout)))
    yield from activations
    least = activations[-1] if activations else Change("", settings, layout)
    divided = ["fsdp2"] if layout.devices > 1 and layout.sharding != "fsdp2" else []
    for sharding in (*divided, "zero2_offload", "zero3_offload"):
        if sharding != layout.sharding:
            moved = replace(layout, sharding=sharding)
            words = f"--sharding {sharding}"
            yield Change(words, settings, moved)
            if activations:
                yield Change(f"{least.words} {words}", least.settings, moved)
    if settings.lora is None:
        adapters = LoRASettings(**resolve("lora")["lora"])
        lora = Change("+lora", settings.model_copy(update={"lora": adapters}), layout)
        yield lora
        for change in _fewer_activations(lora):
            yield replace(change, words=f"{lora.words} {change.words}")


def _fewer_activations(start: Change) -> Iterator[Change]:
    """Recomputing activations, then one row at a time, each on top of the one before."""
    settings, words = start.settings, []
    if not checkpointing(settings):
        words.append("trainer.gradient_checkpointing=true")
        trainer = settings.trainer | {"gradient_checkpointing": True}
        settings = settings.model_copy(update={"trainer": trainer})
        yield replace(start, words=" ".join(words), settings=settings)
    rows = micro_batch(settings, start.layout.devices)
    while rows > 1:
        rows = max(d for d in range(1, rows) if rows % d == 0)
        settings = settings.model_copy(update={"micro_batch": rows})
        yield replace(start, words=" ".join([*words, f"micro_batch={rows}"]), settings=settings)


def advise(settings: TrainSettings, shape: Shape, layout: Layout, limit: float) -> str:
    """``; it fits with ...`` or what else there is to say."""
    found = cheapest_change(settings, shape, layout, limit)
    if found is None:
        return "; nothing makes it fit but more devices with --sharding fsdp2 or shorter rows (data.max_len)"
    change, memory = found
    host = f" and {gib(memory.host)} of main memory" if memory.host else ""
    return f"; it fits with {change.words} ({gib(memory.needed)}{host})"


def check_fits(settings: TrainSettings, shape: Shape, layout: Layout, device_memory: float, *, what: str) -> None:
    """Refuse a run that would surely run out of memory.

    Raises:
        UserError: the estimate in one sentence, and the cheapest change that fits.
    """
    memory = estimate(settings, shape, layout)
    if memory.total > device_memory:
        advice = advise(settings, shape, layout, device_memory)
        raise UserError(f"{refusal(memory, device_memory, what)}{advice}.")
