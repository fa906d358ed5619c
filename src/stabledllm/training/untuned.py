"""The model before its first step, evaluated on the held-out rows, to set the tuned model beside it at the end."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stabledllm.evaluation.untuned import difference
from stabledllm.evaluation.validation import mean_over_rows
from stabledllm.runtime.files import read_json, write_json
from stabledllm.runtime.launched import is_main_process
from stabledllm.stats.estimate import Estimate
from stabledllm.training.earlier import leave_behind
from stabledllm.training.evaluating import EvaluatingTrainer

UNTUNED = "untuned_nll.json"
SCHEMA = "stabledllm/untuned_nll/1"


def before_first_step(out: Path, first: EvaluatingTrainer | None, *, anew: bool) -> None:
    """Set an earlier run's records aside, and keep what the model that is about to be trained says of held-out rows.

    Args:
        first: the Trainer where its first step is to come; None where the untuned model is not to be measured.
        anew: whether no step was made before.
    """
    values = first.nll_of_rows() if first is not None and len(first.eval_rows) else None
    if is_main_process():
        leave_behind(out)
        if anew:
            remove_untuned(out)
        if values is not None:
            save_untuned(out, first.eval_rows, values, first.eval_draws)


def save_untuned(out: Path, rows: Sequence, values: Tensor, draws: int) -> None:
    """Keep each held-out row's NLL before the first step, which a resumed run can no longer measure."""
    record = {"schema": SCHEMA, "draws": draws, "content": _content(rows), "rows": lines_of(rows, values)}
    write_json(out / UNTUNED, record)


def remove_untuned(out: Path) -> None:
    """Remove what an earlier run in the folder kept, whose model may have been another."""
    (out / UNTUNED).unlink(missing_ok=True)


def beside_untuned(out: Path, rows: Sequence, values: Tensor, draws: int) -> dict | None:
    """The untuned model's NLL and the difference, paired by row; None where it is not known of the same rows.

    Returns:
        ``{"untuned": {"validation_nll": ...}, "difference": {"validation_nll": ...}}``, as in ``eval.json``.
    """
    if not (out / UNTUNED).is_file():
        return None  # made from scratch, one of many in an experiment, or begun before this was kept
    saved = read_json(out / UNTUNED, SCHEMA)
    if saved["draws"] != draws or saved["content"] != _content(rows):
        return None  # other rows or draws, by allow_changed
    untuned = mean_over_rows(torch.tensor([row["nll"] for row in saved["rows"]], dtype=torch.float64))
    change = difference(lines_of(rows, values), saved["rows"], "nll", "nats/token")
    return {
        "untuned": {"validation_nll": untuned.as_dict()},
        "difference": {"validation_nll": {k: None if v != v else v for k, v in change.items()}},
    }


def side_by_side(tuned: Estimate, beside: dict | None) -> list[str]:
    """The lines on the final NLL: tuned, and where it is known untuned and the paired difference."""
    lines = [f"validation NLL {tuned}"]
    if beside is not None:
        untuned, change = (beside[name]["validation_nll"] for name in ("untuned", "difference"))
        error = f" ± {untuned['stderr']:.2g}" if untuned["stderr"] is not None else ""
        lines.append(f"untuned model  {untuned['value']:.4g}{error} {untuned['unit']} (n={untuned['n']})")
        low, high = change["ci_low"], change["ci_high"]
        interval = f" (95 % {low:+.3g} to {high:+.3g}, paired by row)" if low is not None else " (one row: no interval)"
        lines.append(f"difference     {change['value']:+.4g}{interval}")
    return lines


def told_of(record: dict) -> list[str]:
    """The same lines for a run's record; none where it has no final NLL."""
    nll = record["metrics"].get("validation_nll")
    if nll is None:
        return []
    error = nll["stderr"] if nll["stderr"] is not None else math.nan
    tuned = Estimate(value=nll["value"], stderr=error, n=nll["n"], unit=nll["unit"])
    return side_by_side(tuned, record if record.get("untuned") else None)


def lines_of(rows: Sequence, values: Tensor) -> list[dict]:
    """Each row's origin and NLL."""
    return [{"origin": row.origin, "nll": value} for row, value in zip(rows, values.tolist(), strict=True)]


def _content(rows: Sequence) -> str:
    """A digest of the rows' tokens and of which of them are given."""
    digest = hashlib.sha256()
    for row in rows:
        given = list(getattr(row, "given", ()))  # rows of images have none
        digest.update(f"{row.prompt_length} {row.tail} {given} {row.input_ids}\n".encode())
    return digest.hexdigest()
