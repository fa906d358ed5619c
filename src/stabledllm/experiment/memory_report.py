"""The text that ``stabledllm plan`` prints."""

from __future__ import annotations

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.experiment.compared import name_of, of_responses
from stabledllm.experiment.planned import runs_of
from stabledllm.experiment.validation import validate
from stabledllm.models.shape import Shape
from stabledllm.models.shapes import shape_of
from stabledllm.planning.advice import advise, gib, refusal
from stabledllm.planning.layout import Layout
from stabledllm.planning.memory import (
    Memory,
    checkpointing,
    copies_of,
    estimate,
    length_of,
    micro_batch,
    rows_at_once,
    views_at_once,
)


def plan(name: str, settings: TrainSettings | ExperimentSettings, layout: Layout, limit: float | None) -> str:
    """The memory estimate of a recipe, which is checked first; for an experiment, of the method that needs most.

    Raises:
        UserError: the recipe is invalid, its model's shape is unknown, or it needs more than ``limit`` per device.
    """
    validate(settings)
    _refuse_sharding(settings.base if isinstance(settings, ExperimentSettings) else settings, layout)
    runs = [run.settings for run in runs_of(settings)]
    shape = shape_of(runs[0].model)
    memory, run = max(((estimate(run, shape, layout), run) for run in runs), key=lambda pair: pair[0].total)
    if limit is not None and memory.needed > limit:
        raise UserError(f"{refusal(memory, limit, f'recipe {name!r}')}{advise(run, shape, layout, limit)}.")
    return "\n".join(_lines(name, run, shape, layout, memory, limit))


def _refuse_sharding(run: TrainSettings, layout: Layout) -> None:
    """Refuse a sharding under which the run would be refused as well."""
    if run.average.count and layout.sharding.startswith("zero"):
        raise UserError(
            f"plan: expected --sharding ddp or fsdp2 beside 'average', found {layout.sharding}; write --sharding fsdp2."
        )
    if of_responses(run) and layout.sharding.startswith("zero"):
        raise UserError(
            f"plan: expected --sharding ddp or fsdp2 for objective.kind={run.objective.kind}, whose steps have several "
            f"backward passes, found {layout.sharding}; write --sharding fsdp2."
        )


def _lines(
    name: str, run: TrainSettings, shape: Shape, layout: Layout, memory: Memory, limit: float | None
) -> list[str]:
    trained = shape.parameters
    if run.lora:
        trained = shape.lora_parameters(run.lora.rank, run.lora.target_modules)
    length, views, rows = length_of(run, layout), views_at_once(run), micro_batch(run, layout.devices)
    at_once = f"{rows} rows x {views} views"
    if of_responses(run):  # a pass holds rows of any views and responses
        at_once = f"{rows_at_once(run, shape, layout)} forward rows"
    copies = " x 2 copies (noisy and clean)" if copies_of(run, shape) == 2 else ""
    recomputed = "activations recomputed" if checkpointing(run) else "activations kept"
    lines = [
        f"{name}: {run.model}, {shape.parameters:,} parameters, {trained:,} trained; method {name_of(run)}",
        f"{layout.devices} x {layout.sharding}; per device and forward {at_once} x {length} tokens"
        f"{copies}, {run.dtype} weights, {recomputed}",
        "",
    ]
    table = memory.parts | {"needed per device": memory.needed}
    lines += [f"  {what:18s}{gib(size):>12s}" for what, size in table.items()]
    if memory.host:
        lines.append(f"  {'main memory':18s}{gib(memory.host):>12s}")
    kept = "fsdp2 keeps" if of_responses(run) else "fsdp2 and zero2 keep"
    lines += ["", f"All logits at once, instead of a chunk of them, would take {gib(memory.all_logits)} more."]
    if run.dtype == "bfloat16" and not run.lora and layout.sharding == "ddp":
        lines.append(
            "Note: without sharding the weights are trained in bfloat16, which loses updates below 1/256 of a weight; "
            f"{kept} float32 master weights."
        )
    if limit is not None:
        lines.append(f"It fits {gib(limit)}.")
    return lines
