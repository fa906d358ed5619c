"""The commands ``stabledllm quickstart``, ``quickstart-images`` and ``quickstart-rl``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import Small, path


def quickstart(
    out: Annotated[Path, typer.Option(parser=path, help="Folder for everything it makes.")] = Path("runs/quickstart"),
    small: Small = False,
) -> None:
    """Decompose, fit, train four methods on two seeds, evaluate, report: minutes on 2 cores."""
    from stabledllm.cli.quickstart_jobs import TEXT, run

    run(TEXT, out, small=small)


def quickstart_images(
    out: Annotated[Path, typer.Option(parser=path, help="Folder for everything it makes.")] = Path(
        "runs/quickstart-images"
    ),
    small: Small = False,
) -> None:
    """The same for pictures: MMaDA's objective, Standard and P-POTS+MIRROR on two seeds, drawn and judged exactly."""
    from stabledllm.cli.quickstart_jobs import IMAGES, run

    run(IMAGES, out, small=small)


def quickstart_rl(
    out: Annotated[Path, typer.Option(parser=path, help="Folder for everything it makes.")] = Path(
        "runs/quickstart-rl"
    ),
    small: Small = False,
) -> None:
    """Policy gradients: GRPO by exact answers, Standard and ours on two seeds at equal forwards: minutes on 2 cores."""
    from stabledllm.cli.quickstart_rl import run

    run(out, small=small)
