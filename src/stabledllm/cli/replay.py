"""The command ``stabledllm replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import Wide, path
from stabledllm.cli.printing import answer_all, say


def replay(
    run: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="The folder of a training run.")],
    step: Annotated[int, typer.Option(min=1, help="The optimizer step, counted from 1, as in the log.")],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path, metavar="FILE.json", help="Where the record goes; RUN/replays/step-N.json without it."
        ),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Without a checkpoint before it: train the steps before it again.")
    ] = False,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Rows per forward, where the run's own do not fit this device.")
    ] = None,
    wide: Wide = False,
) -> None:
    """Rebuild one step of a run, and say where its gradient norm came from: which row, block, token, t and weight."""
    from stabledllm.runtime.locks import writing_beside
    from stabledllm.training.replay.point import find_point

    find_point(run, step, from_start=from_start)  # refused before anything is written
    from stabledllm.reports.spikes import replay_text
    from stabledllm.runtime.files import write_json
    from stabledllm.training.replay.run import replay as rebuild
    from stabledllm.training.replay.run import stored_at

    file = out or stored_at(run, step)
    with writing_beside(file, "replay"):
        record = rebuild(run, step, from_start=from_start, micro_batch=micro_batch, say=say)
        write_json(file, record)
    answer_all(replay_text(record, wide))
    say(f"wrote {file}")
