"""The NLL of every held-out row under each arm, with the same noise, so that arms are compared row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_rows
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.meter import LossMeter
from stabledllm.models.loading import load_model
from stabledllm.noise.objective import Objective
from stabledllm.runtime.device import place
from stabledllm.runtime.files import write_json

DRAWS = 4
"""Views of each row."""


@torch.no_grad()
def write_row_nll(models: Mapping[str, Path], data: DataSettings, file: Path) -> None:
    """Write each model's NLL of each row of ``data``, in nats per response token."""
    found = {}
    for name, folder in models.items():
        print(f"    the held-out rows under {name}", flush=True)
        loaded = load_model(str(folder))
        place(loaded.model)
        rows, _ = load_rows(data.train, loaded.tokenizer, data, "train", None)
        found[name] = row_nll(LossMeter(loaded, rows, Objective()), DRAWS).tolist()
    write_json(file, {"draws": DRAWS, "unit": "nats/token", "rows": found})
