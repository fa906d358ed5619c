"""The command ``stabledllm report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import path
from stabledllm.cli.printing import answer


def report(
    folder: Annotated[Path, typer.Argument(parser=path, help="A folder with results of the other commands.")],
) -> None:
    """One self-contained report.html from what is in a folder."""
    from stabledllm.reports.stored import gather
    from stabledllm.runtime.showing import busy

    gather(folder)  # refused before what draws the figures is loaded, which takes longer than all else
    with busy(f"writing the report of {folder}"):
        from stabledllm.reports.html import write_report

        page = write_report(folder)
    answer(f"report: {page}")
