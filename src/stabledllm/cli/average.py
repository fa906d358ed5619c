"""The command ``stabledllm average``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import path
from stabledllm.cli.printing import answer, say


def average(
    run: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="The folder of a training run.")],
    power: Annotated[float, typer.Option(help="Width: the sd of the weights over the steps, as a share of all.")],
    step: Annotated[
        int | None, typer.Option(min=1, help="After so many steps, those of a snapshot; without it after the last.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder for the model; RUN/model-power-WIDTH without it.")
    ] = None,
) -> None:
    """Rebuild an average of a run's weights of another width, from the snapshots that average.power kept."""
    from stabledllm.cli.new_folders import new_folder
    from stabledllm.training.averages.rebuilding import plan_rebuilding, rebuild

    plan = plan_rebuilding(run, power, step)  # refused before anything is loaded
    name = f"model-{plan.wanted.name}" + ("" if step is None else f"-step-{step}")
    with new_folder(out or plan.run / name, "average") as (folder, place):
        rebuild(plan, folder)
    say(plan.told())
    answer(f"wrote {place}")
