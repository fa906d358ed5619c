"""Says whether a run fits a device, and which cheapest change makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stabledllm.config.recipe import resolve
from stabledllm.config.settings import LoRASettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.shape import Shape
from stabledllm.planning.layout import GIB, Layout
from stabledllm.planning.memory import Memory, checkpointing, estimate, length_of, micro_batch, views_at_once


@dataclass(frozen=True)
class Change:
    """One change to a run, in the words of the command line, with the settings and layout that result."""

    words: str
    settings: TrainSettings
    layout: Layout


def gib(size: float) -> str:
    """A number of bytes in words, such as ``12.3 GiB``."""
    return f"{size / GIB:.1f} GiB"


def refusal(memory: Memory, limit: float, what: str) -> str:
    """The clause that says what a run needs, by parts, and how much memory there is."""
    listed = ", ".join(f"{name} {gib(size)}" for name, size in memory.parts.items() if size >= 0.05 * GIB)
    return f"{what} needs about {gib(memory.needed)} per device ({listed}), found {gib(limit)}"


def cheapest_changes(
    settings: TrainSettings, shape: Shape, layout: Layout, limit: float
) -> list[tuple[Change, Memory]]:
    """The cheapest change that trains the same, and the cheapest with adapters, after which the run fits.

    Either may be missing. The words of a change name everything that has to be done.
    """
    cheapest = []
    for changes in (_same_training(settings, layout), _adapters(settings, layout)):
        fitting = ((change, estimate(change.settings, shape, change.layout)) for change in changes)
        first = next((pair for pair in fitting if pair[1].needed <= limit), None)
        cheapest += [first] if first else []
    return cheapest


def _same_training(settings: TrainSettings, layout: Layout) -> Iterator[Change]:
    """Yields changes that leave every number as it is, alone and together, the cheaper ones first.

    They are: recomputed activations, fewer rows at a time, state divided over the same devices, and state in the host's
    memory.
    """
    unchanged = Change("", settings, layout)
    yield from _fewer_activations(unchanged)
    divided = ["fsdp2"] if layout.devices > 1 else []
    # A step of several backward passes, a second model, and averages of the weights are refused under DeepSpeed.
    whole = settings.objective.kind in ("dpo", "grpo") or settings.average.count > 0
    offloaded = [] if whole else ["zero2_offload", "zero3_offload"]
    for sharding in (*divided, *offloaded):
        if sharding != layout.sharding:
            moved = replace(layout, sharding=sharding)
            yield Change(f"sharding {sharding}", settings, moved)
            if smaller := list(_fewer_activations(replace(unchanged, layout=moved))):
                yield replace(smaller[-1], words=f"{smaller[-1].words} sharding {sharding}")


def _adapters(settings: TrainSettings, layout: Layout) -> Iterator[Change]:
    """Yields LoRA with fewer and fewer activations, then LoRA on a 4-bit base, which bitsandbytes cannot shard."""
    if settings.lora:
        return
    adapters = LoRASettings(**resolve("lora")["lora"])
    smallest = Change("+lora", settings.model_copy(update={"lora": adapters}), layout)
    yield smallest
    for change in _fewer_activations(smallest, views=False):
        smallest = replace(change, words=f"+lora {change.words}")
        yield smallest
    if layout.sharding == "ddp":
        quantised = smallest.settings.model_copy(update={"quantised": "4bit"})
        yield replace(smallest, words=f"{smallest.words} quantised=4bit", settings=quantised)


def _fewer_activations(start: Change, *, views: bool = True) -> Iterator[Change]:
    """Yields recomputed activations, then fewer rows at a time, then one view at a time; each includes those before."""
    settings, words = start.settings, []
    if settings.average.count and not settings.average.on_cpu:
        words.append("average.on_cpu=true")
        average = settings.average.model_copy(update={"on_cpu": True})
        settings = settings.model_copy(update={"average": average})
        yield replace(start, words=" ".join(words), settings=settings)
    if not checkpointing(settings):
        words.append("trainer.gradient_checkpointing=true")
        trainer = settings.trainer | {"gradient_checkpointing": True}
        settings = settings.model_copy(update={"trainer": trainer})
        yield replace(start, words=" ".join(words), settings=settings)
    if settings.objective.kind == "dpo":
        yield from _smaller_pairs(replace(start, settings=settings), words)
        return
    if settings.objective.kind == "grpo":
        yield from _shorter_forwards(replace(start, settings=settings), words)
        return
    rows = micro_batch(settings, start.layout.devices)
    while rows > 1:
        rows = max(d for d in range(1, rows) if rows % d == 0)
        settings = settings.model_copy(update={"micro_batch": rows})
        yield replace(start, words=" ".join([*words, f"micro_batch={rows}"]), settings=settings)
    words += [f"micro_batch={rows}"] if settings.micro_batch != start.settings.micro_batch else []
    if views and views_at_once(settings) > 1 and not start.layout.sharding.startswith("zero"):
        settings = settings.model_copy(update={"views_per_forward": 1})
        yield replace(start, words=" ".join([*words, "views_per_forward=1"]), settings=settings)


def _smaller_pairs(start: Change, words: list[str]) -> Iterator[Change]:
    """Yields fewer tokens of a forward pass of pairs, then no copy of the reference; each includes those before."""
    settings, dpo = start.settings, start.settings.dpo
    if (fewest := start.layout.longest or settings.data.max_len) < dpo.tokens_per_forward:
        dpo = dpo.model_copy(update={"tokens_per_forward": fewest})
        words = [*words, f"dpo.tokens_per_forward={fewest}"]
        yield replace(start, words=" ".join(words), settings=settings.model_copy(update={"dpo": dpo}))
    if dpo.reference in ("auto", "copy") and not settings.lora:
        dpo = dpo.model_copy(update={"reference": "kept"})
        words = [*words, "dpo.reference=kept"]
        yield replace(start, words=" ".join(words), settings=settings.model_copy(update={"dpo": dpo}))


def _shorter_forwards(start: Change, words: list[str]) -> Iterator[Change]:
    """Yields forward passes of one response, whose reference is no choice of memory but of the algorithm."""
    settings, grpo = start.settings, start.settings.grpo
    fewest = length_of(settings, start.layout)
    if fewest < grpo.tokens_per_forward:
        grpo = grpo.model_copy(update={"tokens_per_forward": fewest})
        words = [*words, f"grpo.tokens_per_forward={fewest}"]
        yield replace(start, words=" ".join(words), settings=settings.model_copy(update={"grpo": grpo}))


def advise(settings: TrainSettings, shape: Shape, layout: Layout, limit: float) -> str:
    """The clause that says with which changes a run fits (``; it fits with ...``), or that none makes it fit."""
    changes = cheapest_changes(settings, shape, layout, limit)
    if not changes:
        return "; nothing makes it fit but more devices with sharding fsdp2, or shorter rows (data.max_len)"
    hosts = [f" and {gib(memory.host)} of main memory" if memory.host else "" for _, memory in changes]
    ways = [f"{c.words} ({gib(m.needed)}{host})" for (c, m), host in zip(changes, hosts, strict=True)]
    return f"; it fits with {', or with '.join(ways)}"


def check_fits(settings: TrainSettings, shape: Shape, layout: Layout, device_memory: float, *, what: str) -> None:
    """Refuse a run that would surely run out of memory.

    Raises:
        UserError: gives the estimate in one sentence, and the cheapest change that fits.
    """
    memory = estimate(settings, shape, layout)
    if memory.total > device_memory:
        advice = advise(settings, shape, layout, device_memory)
        raise UserError(f"{refusal(memory, device_memory, what)}{advice}.")
