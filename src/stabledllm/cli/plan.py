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
    from stabledllm.config import load_recipe
    from stabledllm.experiment.memory_report import plan as report
    from stabledllm.planning.advice import parse_memory
    from stabledllm.planning.memory import Layout

    limit = parse_memory(memory) if memory else None
    answer(report(recipe, load_recipe(recipe, typed.overrides), Layout(devices, sharding, longest), limit))
