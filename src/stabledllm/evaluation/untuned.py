"""The model that another one was tuned from, and the differences between the two, paired by example."""

from __future__ import annotations

from pathlib import Path

import torch

from stabledllm.config.run_folder import STAMP
from stabledllm.errors import UserError
from stabledllm.evaluation.validation import mean_over_rows
from stabledllm.models.adapter_base import base_of
from stabledllm.models.loading import is_adapter, model_folder
from stabledllm.models.new import is_new
from stabledllm.runtime.files import read_json


def tuned_from(name: str, base: str | None = None) -> str | None:
    """The model that an adapter (its base) or a run's model (by its record) was tuned from, or None.

    None for any other model and for one that was trained from scratch.

    Raises:
        UserError: its name is known, but there is no model under that name.
    """
    folder = Path(name).expanduser()
    if is_adapter(name):
        source = base or base_of(folder)
    elif (folder / STAMP).is_file():
        source = read_json(folder / STAMP).get("model")  # what training started from
    else:
        return None
    if not source or is_new(source):  # random weights are no model to compare with
        return None
    try:
        model_folder(source)
    except UserError as error:
        raise UserError(
            f"model '{name}': expected the model '{source}' that it was tuned from, to evaluate it beside ({error}); "
            f"name it with --beside, or --beside none."
        ) from None
    return source


def difference(ours: list[dict], theirs: list[dict], key: str, unit: str) -> dict:
    """The mean of ours minus theirs over the examples of two lists, paired by ``origin``, with its standard error.

    Numbers are compared as they are. Of verdicts (true, false, null for no answer) true counts 1 and the others 0, and
    the result also holds how many examples were ``gained`` and ``lost``.

    Raises:
        UserError: the two lists are of different examples.
    """
    if [row["origin"] for row in ours] != [row["origin"] for row in theirs]:
        raise UserError("beside: expected the untuned model's results on the same examples, found others.")
    verdicts = key == "correct"
    a, b = ([float(row[key] is True) if verdicts else row[key] for row in rows] for rows in (ours, theirs))
    each = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    estimate = mean_over_rows(each, unit)
    low, high = estimate.interval()
    out = estimate.as_dict() | {"ci_low": low, "ci_high": high}
    if verdicts:
        out |= {"gained": int((each > 0).sum()), "lost": int((each < 0).sum())}
    return out
