"""The quickstart of policy gradients: training by exact answers on a shipped model, and a report; it can be resumed."""

from __future__ import annotations

import time
from pathlib import Path

from stabledllm.cli import experiment
from stabledllm.cli.printing import answer, say
from stabledllm.runtime.locks import writing

RECIPE = "quickstart-rl"
_SMALL = (
    "base.steps=4", "base.batch=2", "base.save_every=2", "base.log_every=1", "base.data.train_rows=32",
    "base.data.validation_rows=8", "base.data.test_rows=4", "base.grpo.group=4",
)  # fmt: skip


def run(out: Path, *, small: bool) -> None:
    """Train the shipped experiment on rewards, and write its report; finished runs are not repeated."""
    started = time.perf_counter()
    with writing(out, RECIPE):
        say("1/2 training on rewards of the model's own responses: methods x seeds, at equal forward passes")
        experiment.run(RECIPE, [f"out={out / 'experiment'}", *(_SMALL if small else ())])
        say("2/2 the report")
        from stabledllm.reports.html import write_report

        answer(f"report: {write_report(out).resolve()} ({time.perf_counter() - started:.0f} s)")
