"""The command ``stabledllm fit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import Data, Model, Overrides, Quick
from stabledllm.cli.printing import say, say_all


def fit(
    overrides: Overrides = None,
    method: Annotated[str, typer.Option(help="Method with ppots whose p(t) is fitted.")] = "ppots",
    model: Model = "tiny",
    data: Data = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for p_of_t.json and its picture.")] = Path("runs/fit"),
    seed: Annotated[int, typer.Option(help="Of the probe and the fit's starts.")] = 0,
    quick: Quick = False,
) -> None:
    """Probe the loss over t and fit p(t) for a method's source, masker and views.

    Further settings as KEY=VALUE: ppots.design, ppots.rows, ppots.rates, ppots.masks, ppots.starts, data.max_len, ...
    """
    run(
        {"model": model, "data": {"train": data}, "method": method, "out": str(out), "seed": seed},
        overrides or [],
        quick,
    )


def run(tree: dict, overrides: Sequence[str], quick: bool = False) -> None:
    """Probe, fit, and write ``p_of_t.json`` with its figure."""
    from stabledllm.config.recipe import apply_overrides, check
    from stabledllm.config.settings import TrainSettings
    from stabledllm.data.images import with_image_defaults
    from stabledllm.experiment.idle import idle_in_fit
    from stabledllm.lab.fit import run_fit
    from stabledllm.lab.quick import FIT, under
    from stabledllm.reports.save import save_fit_figure
    from stabledllm.runtime.locks import writing

    tree = under(FIT, tree) if quick else tree
    settings = with_image_defaults(check(apply_overrides(tree, overrides), TrainSettings, "fit"))
    say_all(idle_in_fit(settings, overrides))
    path = Path(settings.out) / "p_of_t.json"
    with writing(settings.out, "fit"):
        density = run_fit(settings, path, say, quick=quick)
        say(f"wrote {path} and {save_fit_figure(density.record, path.with_suffix('.png')).name}")
