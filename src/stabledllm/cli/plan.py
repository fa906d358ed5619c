"""The command ``stabledllm plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from stabledllm.cli.arguments import read_arguments, recipe_of
from stabledllm.cli.options import Arguments, Config
from stabledllm.cli.printing import answer


def plan(
    words: Arguments = None,
    config: Config = None,
    devices: Annotated[int, typer.Option(min=1, help="Accelerators of the run.")] = 1,
    sharding: Annotated[str, typer.Option(help="ddp, fsdp2, zero2, zero2_offload, zero3 or zero3_offload.")] = "ddp",
    memory: Annotated[str | None, typer.Option(help="Memory of each, such as 80GiB; refused where it is less.")] = None,
    longest: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest row; data.max_len without it.")
    ] = None,
) -> None:
    """Memory of a recipe per device, without loading anything; exit code 2 where it does not fit."""
    typed = read_arguments("plan", words, config)
    recipe = recipe_of(typed)
    from stabledllm.experiment.commands_at_once import check_plan

    settings, layout, limit = check_plan(recipe, typed.overrides, memory, devices, sharding, longest)
    from stabledllm.experiment.memory_report import plan as report
    from stabledllm.reports.table import filled

    text = report(recipe, settings, layout, limit)
    answer("\n".join(line if line.startswith("  ") else filled(line) for line in text.splitlines()))
