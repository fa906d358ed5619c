"""The command ``stabledllm decompose``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import Data, Model, Overrides, Quick, Wide
from stabledllm.cli.printing import say, say_all


def decompose(
    overrides: Overrides = None,
    model: Model = "tiny",
    data: Data = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for decomposition.json and pictures.")] = Path("runs/decompose"),
    methods: Annotated[str | None, typer.Option(help="Methods to compare, separated by commas.")] = None,
    gradient: Annotated[bool, typer.Option("--gradient", help="The gradient's noise as well as the loss's.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    quick: Quick = False,
    wide: Wide = False,
) -> None:
    """Where the training noise comes from, and what each method does to it.

    Further settings as KEY=VALUE: rows, rates, masks, steps, forwards, probe.rows, data.max_len, ...
    """
    run(settings_tree(model, data, out, methods, gradient, seed), overrides or [], quick, wide)


def settings_tree(model: str, data: str, out: Path, methods: str | None, gradient: bool, seed: int) -> dict:
    """The command's options as a tree of keys of :class:`~stabledllm.config.settings.DecomposeSettings`."""
    tree = {"model": model, "data": {"train": data}, "out": str(out), "seed": seed, "gradient": gradient}
    return tree | ({"methods": [name.strip() for name in methods.split(",")]} if methods else {})


def run(tree: dict, overrides: Sequence[str], quick: bool = False, wide: bool = False) -> Path:
    """Measure, print the tables, write ``decomposition.json`` and the figures, and return their folder."""
    from stabledllm.config.recipe import apply_overrides, check
    from stabledllm.config.settings import DecomposeSettings
    from stabledllm.experiment.idle import idle_in_decompose
    from stabledllm.lab.decompose import run_decompose
    from stabledllm.lab.quick import DECOMPOSE, under
    from stabledllm.reports.printed import decomposition_text
    from stabledllm.reports.save import save_decomposition_figures
    from stabledllm.runtime.locks import writing

    tree = under(DECOMPOSE, tree) if quick else tree
    settings = check(apply_overrides(tree, overrides), DecomposeSettings, "decompose")
    say_all(idle_in_decompose(settings, overrides))
    out = Path(settings.out)
    with writing(settings.out, "decompose"):
        record = run_decompose(settings, say, quick=quick)
        say_all(decomposition_text(record, wide))
        figures = save_decomposition_figures(record, out)
        say(f"wrote {out / 'decomposition.json'} and {', '.join(figure.name for figure in figures)}")
    return out
