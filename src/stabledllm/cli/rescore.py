"""The command ``stabledllm rescore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import path
from stabledllm.cli.printing import answer


def rescore(
    rows: Annotated[Path, typer.Argument(parser=path, metavar="IN.jsonl", help="Rows with 'completion' and 'gold'.")],
    task: Annotated[str, typer.Option(help="Whose scorer: gsm8k, hitab, openscience, reasoning-gym or synthetic.")],
    out: Annotated[
        Path, typer.Option(parser=path, metavar="OUT.jsonl", help="Where the rows go, with 'parsed' and 'correct'.")
    ],
) -> None:
    """Score completions again without the model; 'gold' is the data set's own answer field."""
    from stabledllm.experiment.commands_at_once import check_command

    check_command("rescore", {"rows": str(rows), "task": task, "out": str(out)})
    from stabledllm.runtime.locks import writing_beside
    from stabledllm.tasks.rescore import rescore as run

    with writing_beside(out, "rescore"):
        answer(run(task, rows, out))
