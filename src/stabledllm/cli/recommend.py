"""The command ``stabledllm recommend``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli import decompose
from stabledllm.cli.options import Data, Model, Overrides, Quick, Wide, path
from stabledllm.cli.printing import say
from stabledllm.errors import UserError


def recommend(
    overrides: Overrides = None,
    stored: Annotated[
        Path | None,
        typer.Option("--from", parser=path, help="A decomposition.json, or its folder, instead of measuring now."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Whose noise decides: gradient or loss; the gradient's where it is measured.")
    ] = None,
    model: Model = "tiny",
    data: Data = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for decomposition.json and pictures.")] = Path("runs/recommend"),
    methods: Annotated[str | None, typer.Option(help="Methods to choose from, separated by commas.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    quick: Quick = False,
    wide: Wide = False,
) -> None:
    """What to train with: measure every method's gradient noise at equal compute, and end with the recipe to paste.

    Further settings as KEY=VALUE, as for decompose; forwards=32 is the batch in forward passes.
    """
    from stabledllm.lab.recommendation import QUANTITIES
    from stabledllm.lab.recommendation import recommend as choose
    from stabledllm.reports.stored import read
    from stabledllm.reports.table import filled

    if by is not None and by not in QUANTITIES:
        raise UserError(f"recommend: expected --by {' or '.join(QUANTITIES)}, found '{by}'.")
    if stored is None:
        tree = decompose.settings_tree(model, data, out, methods, True, seed)
        stored = decompose.run(tree, overrides or [], quick, wide)
    elif quick:
        raise UserError("recommend: --quick measures now, and --from does not; leave one of them out.")
    elif overrides:
        raise UserError(f"recommend: expected no settings beside --from, found '{overrides[0]}'.")
    choice = choose(read(stored / "decomposition.json" if stored.is_dir() else stored, "decomposition"), by)
    say("\n" + "\n".join(map(filled, choice.sentences)))
    say(f"\n# stabledllm train recipe.yaml\n{choice.recipe}")
