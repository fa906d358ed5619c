"""Replays a step of a run: rebuilds it, compares it with what was recorded, and explains its gradient norm."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stabledllm.config.run_folder import REPLAYS
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.runtime.saying import silent
from stabledllm.runtime.showing import bar
from stabledllm.training.replay.analysis import analyse
from stabledllm.training.replay.cause import cause_of
from stabledllm.training.replay.point import Point, find_point
from stabledllm.training.replay.rebuild import at_the_step
from stabledllm.training.replay.situation import Situation
from stabledllm.training.spikes import norm_window

SCHEMA = "stabledllm/replay/1"
SAME = 1e-3
"""Largest relative difference from the recorded numbers with which a step counts as rebuilt."""


def stored_at(run: Path, step: int) -> Path:
    """Where the record of a replayed step lies in its run's folder, where the report finds it."""
    return run / REPLAYS / f"step-{step}.json"


def replay(
    run: Path,
    step: int,
    *,
    from_start: bool = False,
    micro_batch: int | None = None,
    say: Callable[[str], None] = silent,
) -> dict:
    """Rebuild a step of a run from the checkpoint before it, and return where its gradient norm came from.

    Everything that a step draws is a function of the seed and the step, so the steps between the checkpoint and this
    one are made again with the same bits, as a resumed run makes them. The run's folder is only read.

    Args:
        run: the folder of a training run, ended or not. step: counted from 1, as in its log.
        from_start: where no checkpoint is before the step, train the steps before it again from the first.
        micro_batch: rows per forward instead of the run's own, such as where one device replaces several.

    Raises:
        UserError: there is no such step, no checkpoint before it, or its data or model is not there any more.
    """
    point = find_point(run, step, from_start=from_start, say=say)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stabledllm-replay-") as scratch:
        trainer, method, by_place, ended = at_the_step(point, Path(scratch), micro_batch, say)
        loss, norm = trainer.watch.last
        rate = trainer._get_learning_rate()
        with bar(sum(len(batch["place"]) for batch in trainer.batches), f"rows of step {step}", "row") as shown:
            found = analyse(trainer, by_place, ended is None, shown.update)
        seen = norm_window(trainer)
        now = Situation(
            step, norm, seen.median(), seen.norms, seen.losses, rate, method, problem=ended.what if ended else None
        )
        cause = cause_of(found, now)
    shares = [row.share for row in found.rows if row.share is not None]
    return {
        "schema": SCHEMA,
        "run": run.name,
        "step": step,
        "checkpoint": point.checkpoint.folder.name if point.checkpoint else None,
        "steps_before": point.steps_before,
        "cause": cause.kind,
        "sentence": cause.sentence,
        "loss": loss,
        "grad_norm": norm,
        "recorded": point.recorded or None,
        "compared": compared(point, loss, norm),
        "median": seen.median(),
        "learning_rate": rate,
        "method": method.name,
        "unexplained": 1 - sum(shares) if shares else None,
        **found.as_dict(),
        "versions": versions(),
        "device": device_name(trainer.args.device),
        "seconds": time.perf_counter() - began,
    }


def compared(point: Point, loss: float, norm: float | None) -> str:
    """A sentence on whether the rebuilt step is the recorded one."""
    if not point.recorded:
        return f"Nothing was recorded of step {point.step} to compare with."
    values = {"grad_norm": norm, "loss": loss}
    names = {"grad_norm": "gradient norm", "loss": "loss"}
    told, same = [], True
    for name, recorded in point.recorded.items():
        if recorded is None or values[name] is None:
            continue
        off = abs(values[name] - recorded) / max(abs(recorded), 1e-12)
        same &= off <= SAME
        by = "" if off <= 1e-6 else f", {100 * off:.2g} % off"
        told.append(f"{names[name]} {values[name]:.6g}, recorded {recorded:.6g}{by}")
    if same:
        return f"Rebuilt as recorded: {'; '.join(told)}."
    return (
        f"NOT rebuilt as recorded: {'; '.join(told)}. Other packages, another device or dropout make such a "
        f"difference, and what follows is about the rebuilt step."
    )
