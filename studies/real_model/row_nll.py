"""The NLL of rows under models, with the same noise for each, so that they are compared row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from studies.real_model.parts import FAMILIAR
from torch import Tensor

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_rows
from stabledllm.evaluation.validation import mean_over_rows, row_nll
from stabledllm.forward.meter import LossMeter
from stabledllm.models.loading import load_model
from stabledllm.noise.objective import Objective
from stabledllm.runtime.device import place
from stabledllm.runtime.files import write_json

DRAWS = 4
"""Views of each held-out row of an arm."""
FAMILIAR_DRAWS = 2
"""Views of each such row, the same for every model, so that their noise is in no difference of two."""


@torch.no_grad()
def nll_of_rows(model: Path, data: DataSettings, draws: int) -> Tensor:
    """A model's NLL of each row of ``data``, in nats per response token."""
    loaded = load_model(str(model))
    place(loaded.model)
    rows, _ = load_rows(data.train, loaded.tokenizer, data, "train", None)
    return row_nll(LossMeter(loaded, rows, Objective()), draws)


def write_row_nll(models: Mapping[str, Path], data: DataSettings, file: Path) -> None:
    """Write each model's NLL of each row of ``data``."""
    found = {}
    for name, folder in models.items():
        print(f"    the held-out rows under {name}", flush=True)
        found[name] = nll_of_rows(folder, data, DRAWS).tolist()
    write_json(file, {"draws": DRAWS, "unit": "nats/token", "rows": found})


def write_familiar(models: Mapping[Path, Path], data: DataSettings) -> None:
    """Write each model's mean NLL of the rows of ``data`` as :data:`FAMILIAR` of its folder, where none is there.

    Args:
        models: by the folder that the figure is written to.
    """
    for folder, model in models.items():
        if not (file := folder / FAMILIAR).is_file():
            print(f"    {folder}: new rows of the templates of the training rows", flush=True)
            found = mean_over_rows(nll_of_rows(model, data, FAMILIAR_DRAWS))
            write_json(file, {"nll": found.as_dict(), "draws": FAMILIAR_DRAWS})
