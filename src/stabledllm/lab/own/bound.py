"""The bound on the likelihood of one's own rows, with its record."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from stabledllm.data.token_rows import TokenRow
from stabledllm.forward.elbo import RowELBO, elbo
from stabledllm.forward.meter import MeteredModel
from stabledllm.lab.measure.progress import Tell
from stabledllm.lab.own.progress import shown
from stabledllm.models.evaluating import evaluating
from stabledllm.noise.densities import TSampler
from stabledllm.runtime.provenance import device_name, versions

SCHEMA = "stabledllm/elbo/1"


def measure_bound(
    metered: MeteredModel,
    rows: Sequence[TokenRow],
    method: str,
    budget: int,
    *,
    seed: int,
    step: int,
    eps: float,
    density: TSampler | None,
    replicates: int | None,
    tokens_per_batch: int | None,
    data: str,
    notes: Sequence[str],
    tell: Tell | bool | None,
) -> tuple[RowELBO, dict]:
    """The bound of every row as :func:`stabledllm.elbo` estimates it, without gradients, and its record.

    Args:
        data: what the record calls the rows. notes: what it says of the model. tell: what shows the progress.
    """
    started = time.perf_counter()
    more = {"tokens_per_batch": tokens_per_batch} if tokens_per_batch else {}
    total = budget * len(rows) if type(budget) is int else None  # another kind is refused by elbo
    with torch.no_grad(), evaluating(metered.model), shown(f"elbo {method}", total, tell) as progress:
        bound = elbo(
            metered.model, rows, method, budget, seed=seed, step=step, density=density, replicates=replicates, eps=eps,
            mask_id=metered.mask_id, pad_id=metered.pad_id, progress=progress.update, **more,
        )  # fmt: skip
    each = zip(bound.value.tolist(), bound.stderr.tolist(), bound.tokens.tolist(), strict=True)
    return bound, {
        "schema": SCHEMA,
        "model": metered.name,
        "data": data,
        "method": method,
        "config": {"budget": budget, "step": step, "replicates": bound.replicates, "eps": eps},
        "versions": versions(),
        "device": device_name(next(metered.model.parameters()).device),
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "forward_passes": bound.forwards,
        "mean": bound.mean.as_dict(),
        "mean_per_token": bound.per_token().mean.as_dict(),
        "rows": [{"value": value, "stderr": error, "tokens": tokens} for value, error, tokens in each],
        "notes": list(notes),
    }
