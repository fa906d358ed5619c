"""The command ``stabledllm power``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import path
from stabledllm.cli.printing import answer, answer_all
from stabledllm.errors import Gathered, UserError


def power(
    difference: Annotated[float, typer.Option(help="The difference of means one hopes to show, such as 0.01.")],
    sd: Annotated[float | None, typer.Option(help="Standard deviation over seeds, of either method.")] = None,
    correlation: Annotated[float, typer.Option(help="Of the two methods over common seeds.")] = 0.0,
    stored: Annotated[
        Path | None,
        typer.Option("--from", parser=path, help="An experiment's folder or results.json, in place of --sd."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="With --from: accuracy (where it was measured), validation_nll, clip_score, ...")
    ] = None,
    methods: Annotated[int | None, typer.Option(min=1, help="Methods compared with Standard at once.")] = None,
    power: Annotated[float, typer.Option(help="Probability of showing it.")] = 0.8,
) -> None:
    """How many seeds it takes to show a difference between two methods."""
    from stabledllm.experiment.power import describe_seeds, describe_seeds_by_method
    from stabledllm.experiment.spread import comparable_values
    from stabledllm.reports.stored import read, run_methods, run_metrics
    from stabledllm.reports.table import filled

    gathered = Gathered()
    if (sd is None) == (stored is None):
        found = "neither" if sd is None else "both"
        gathered.add(f"power: expected --sd NUMBER or --from FOLDER of an experiment, found {found}.")
    if difference == 0 or not math.isfinite(difference):
        gathered.add(f"power: expected --difference as a number other than 0, such as 0.01, found {difference:g}.")
    if sd is not None and not 0 < sd < math.inf:
        gathered.add(f"power: expected --sd above 0, such as 0.02, found {sd:g}.")
    if stored is not None and not (stored / "results.json" if stored.is_dir() else stored).is_file():
        found = f"none in '{stored}'" if stored.is_dir() else f"nothing at '{stored}'"
        gathered.add(
            f"power: expected --from with the results.json of an experiment, found {found}; 'stabledllm experiment' "
            f"writes it."
        )
    gathered.refuse()
    if stored is None:
        answer(filled(describe_seeds(difference, sd, correlation, wanted=power, methods=methods or 1)))
        return
    results = read(stored / "results.json" if stored.is_dir() else stored, "results")
    if results.get("rates"):
        raise UserError(
            f"{stored}: expected an experiment at one learning rate, found a grid of them; write --sd, which the table "
            f"of its runs tells."
        )
    found = comparable_values(results["runs"], run_methods(results), run_metrics(results))
    if not found:
        raise UserError(
            f"{stored}: expected two seeds or more of Standard and of another method with a metric, found none; run "
            f"the experiment with more 'seeds'."
        )
    if metric is None:
        metric = "accuracy" if "accuracy" in found else next(iter(found))
        others = [name for name in found if name != metric]
        answer(f"metric: {metric}" + (f" (--metric takes {', '.join(others)} too)" if others else ""))
    if metric not in found:
        raise UserError(
            f"{stored}: expected two seeds or more of Standard and of another method with '{metric}', found none; "
            f"write --metric {' or --metric '.join(found)}."
        )
    answer_all(map(filled, describe_seeds_by_method(found[metric], difference, wanted=power, methods=methods)))
