"""The averages at the end of a run: evaluated on the held-out rows and saved beside the last weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from stabledllm.evaluation.untuned import difference
from stabledllm.evaluation.validation import mean_over_rows
from stabledllm.noise.objective import Objective
from stabledllm.runtime.showing import busy
from stabledllm.training.checkpoints import STAMP, stamp
from stabledllm.training.devices import save_whole
from stabledllm.training.earlier import MODEL
from stabledllm.training.evaluating import EvaluatingTrainer
from stabledllm.training.untuned import lines_of

Say = Callable[[str], None]


def keep_averages(
    trainer: EvaluatingTrainer, out: Path, identity: dict, last: Tensor | None, own: Objective | None, say: Say
) -> dict:
    """Evaluate and save every average of a trainer; every rank must call this.

    Args:
        out: the run's folder; an average goes into ``model-NAME`` in it, in the layout and precision of ``model``.
        last: what the last weights say of each held-out row, (rows,); None where there are none.
        own: the objective that is trained, where held-out rows are measured by it too.

    Returns:
        for each average ``{"model": its folder, "counted": the steps in it, "metrics": {...}, "difference": {...}}``,
        the difference being the average's metric minus that of the last weights, paired by row.
    """
    averages, kept = trainer.averages, {}
    if averages is None:
        return kept
    for name in averages.rules:
        if name not in averages.ready:
            say(f"average {name}: none, since the run ended before the steps that it is of")
            continue
        folder = out / f"{MODEL}-{name}"
        with averages.in_place(name):
            found = {} if last is None else _beside(trainer, last, own, name, say)
            if trainer.is_world_process_zero():
                (folder / STAMP).unlink(missing_ok=True)
            with busy(f"saving the average in {folder}"):
                save_whole(trainer, folder)
        if trainer.is_world_process_zero():
            stamp(folder, identity, trainer.density_file)
        kept[name] = {"model": folder.name, "counted": averages.counted[name], "metrics": {}, "difference": {}} | found
    return kept


def _beside(trainer: EvaluatingTrainer, last: Tensor, own: Objective | None, name: str, say: Say) -> dict:
    values = trainer.finite_nll_of_rows()
    nll = mean_over_rows(values)
    change = difference(lines_of(trainer.eval_rows, values), lines_of(trainer.eval_rows, last), "nll", "nats/token")
    change = {key: None if value != value else value for key, value in change.items()}
    low, high = change["ci_low"], change["ci_high"]
    interval = f", 95 % {low:+.3g} to {high:+.3g}, paired by row" if low is not None else ""
    say(f"average {name}: validation NLL {nll} ({change['value']:+.4g} to the last weights{interval})")
    metrics = {"validation_nll": nll, **trainer.metrics_of_weights()}
    metrics |= {"validation_objective": trainer.validation(own)} if own else {}
    found = {key: each.as_dict() for key, each in metrics.items()}
    return {"metrics": found, "difference": {"validation_nll": change}}
