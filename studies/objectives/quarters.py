"""Where a model's bound on held-out rows lies: the part of it from each quarter of the mask ratios."""

from __future__ import annotations

from pathlib import Path

import torch
from studies.objectives.rows import QUARTERS

from stabledllm.config import load_recipe
from stabledllm.data.bundle import load_rows
from stabledllm.evaluation.validation import NOISE_SEED
from stabledllm.forward.meter import LossMeter
from stabledllm.models.loading import load_model
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key, Stream


def quarters_of(model: Path | str, recipe: Path) -> list[float]:
    """The parts of the bound from each quarter of the mask ratios, in nats per response token.

    The rows, the ratios and the masks are those of ``validation_nll`` at four draws a row, one in each quarter; it is
    the sum of the parts.
    """
    data = load_recipe(str(recipe)).base.data
    loaded = load_model(str(model))
    rows, _ = load_rows(data.train, loaded.tokenizer, data, "validation", data.validation_rows)
    meter, key, draws = LossMeter(loaded, rows, Objective()), Key(NOISE_SEED, 0), len(QUARTERS)
    u = key.row_uniforms(Stream.RATE, torch.arange(len(rows) * draws)).view(-1, draws)
    t = ((torch.arange(draws) + u) / draws).flatten()
    row = torch.arange(len(t)) // draws
    losses = meter.losses(row, t, Method.parse("fixedcount"), key).view(-1, draws)
    return (losses.mean(0) / draws).tolist()
