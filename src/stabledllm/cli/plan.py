"""The command ``stabledllm plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from stabledllm.cli.options import Overrides
from stabledllm.cli.printing import say


def plan(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="Accelerators of the run.")] = 1,
    sharding: Annotated[str, typer.Option(help="ddp, fsdp2, zero2, zero2_offload, zero3 or zero3_offload.")] = "ddp",
    memory: Annotated[str | None, typer.Option(help="Memory of each, such as 80GiB; refused where it is less.")] = None,
    longest: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest row; data.max_len without it.")
    ] = None,
) -> None:
    """Memory of a recipe per device, without loading anything; exit code 2 where it does not fit."""
    from stabledllm.config import load_recipe
    from stabledllm.experiment.memory_report import plan as report
    from stabledllm.planning.advice import parse_memory
    from stabledllm.planning.memory import Layout
    from stabledllm.reports.table import filled

    limit = parse_memory(memory) if memory else None
    text = report(recipe, load_recipe(recipe, overrides or []), Layout(devices, sharding, longest), limit)
    say("\n".join(line if line.startswith("  ") else filled(line) for line in text.splitlines()))
