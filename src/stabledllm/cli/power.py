"""The command ``stabledllm power``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import path
from stabledllm.cli.printing import answer, answer_all
from stabledllm.errors import UserError


def power(
    difference: Annotated[float, typer.Option(help="The difference of means one hopes to show, such as 0.01.")],
    sd: Annotated[float | None, typer.Option(help="Standard deviation over seeds, of either method.")] = None,
    correlation: Annotated[float, typer.Option(help="Of the two methods over common seeds.")] = 0.0,
    stored: Annotated[
        Path | None,
        typer.Option("--from", parser=path, help="An experiment's folder or results.json, in place of --sd."),
    ] = None,
    metric: Annotated[str, typer.Option(help="With --from: accuracy, validation_nll, clip_score, ...")] = "accuracy",
    methods: Annotated[int | None, typer.Option(min=1, help="Methods compared with Standard at once.")] = None,
    power: Annotated[float, typer.Option(help="Probability of showing it.")] = 0.8,
) -> None:
    """How many seeds it takes to show a difference between two methods."""
    from stabledllm.experiment.power import describe_seeds, describe_seeds_by_method
    from stabledllm.experiment.spread import values_of
    from stabledllm.reports.stored import read, run_methods

    if (sd is None) == (stored is None):
        raise UserError("power: expected either --sd or --from, found both or neither.")
    if stored is None:
        answer(describe_seeds(difference, sd, correlation, wanted=power, methods=methods or 1))
        return
    results = read(stored / "results.json" if stored.is_dir() else stored, "results")
    every = {name: values_of(results["runs"], name, metric) for name in run_methods(results)}
    values = {name: own for name, own in every.items() if own}
    if "standard" not in values or len(values) < 2:
        raise UserError(f"{stored}: expected runs of Standard and of another method with '{metric}', found none.")
    answer_all(describe_seeds_by_method(values, difference, wanted=power, methods=methods))
