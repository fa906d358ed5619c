"""What a recipe must say before it can be run: which rows it trains on, and enough of them for a step."""

from __future__ import annotations

from stabledllm.config.recipe import shipped_recipes
from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError

_PARTS = "parts/"


def check_needed(name: str, run: TrainSettings) -> None:
    """Refuse a recipe that names no training rows, or fewer than a step takes.

    Raises:
        UserError: says what to write.
    """
    if "train" not in run.data.model_fields_set:
        part = next((one for one in (name, _PARTS + name) if one.startswith(_PARTS) and one in shipped_recipes()), None)
        if part:
            raise UserError(
                f"recipe '{name}': expected a recipe with data.train, found a part of others; write "
                f"RECIPE+{part.removeprefix(_PARTS)}."
            )
        raise UserError(
            f"recipe '{name}': expected data.train, the rows to train on, found none; write data.train=PATH (your own "
            f"file), or data.train=synthetic for the synthetic task."
        )
    refuse_few_rows(run, run.data.train_rows)


def refuse_few_rows(run: TrainSettings, rows: int | None) -> None:
    """Refuse a step of more rows than there are to train on.

    Args:
        rows: how many there are; None where that is not known.

    Raises:
        UserError: says which batch works.
    """
    if rows is not None and run.batch > rows:
        raise UserError(
            f"key 'batch': expected at most as many rows per step as there are to train on, {rows}, found {run.batch}; "
            f"write batch={rows} or less, or give more rows."
        )
