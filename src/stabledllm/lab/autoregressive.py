"""The decomposition of an autoregressive model's loss: no token is masked, so that all of its variance is C."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.build import build_objective
from stabledllm.config.settings import DecomposeSettings
from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.meter import LossMeter
from stabledllm.lab.bar import progress_bar
from stabledllm.lab.measure.by_length import by_length
from stabledllm.method_checks import check_autoregressive
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import AUTOREGRESSIVE
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import of_variance
from stabledllm.stats.jackknife import jackknife
from stabledllm.stats.shares import shares_of, spread_change, token_mean
from stabledllm.variance.components import UNIT, Decomposition


def measure_autoregressive(settings: DecomposeSettings, loaded: LoadedModel, rows: list[TokenRow]) -> tuple[dict, int]:
    """The entries of ``decomposition.json`` for an autoregressive model, and the number of forward passes they took.

    As many rows are measured as a masked diffusion model's A, B and C take forward passes; each row's loss is exact.

    Raises:
        UserError: ``gradient``, which is measured for masked diffusion models only.
    """
    if settings.gradient:
        raise UserError(
            f"key 'gradient': expected a masked diffusion model, found '{settings.model}', an autoregressive one."
        )
    objective = build_objective(settings.objective)
    check_autoregressive(objective)
    rows = rows[: settings.rows * settings.rates * settings.masks]
    with progress_bar("decompose", len(rows)) as progress:
        meter = LossMeter(loaded, rows, objective, progress=progress.update)
        losses = row_nll(meter)
    method = Method.parse(AUTOREGRESSIVE, objective=objective)
    share = meter.shares(method) if objective.normalization != "row" else None

    def parts(keep: Tensor) -> Decomposition:
        return decompose_autoregressive(losses[keep], shares_of(share, keep))

    tokens = torch.tensor([row.response_length for row in rows])
    entries = {
        "kind": "arm",
        "loss": parts(torch.arange(len(losses))).as_dict(),
        "gradient": None,
        "curves": None,
        "densities": [],
        "by_length": by_length(tokens, parts),
        "mirror": None,
        "methods": [],
        "notes": ["An autoregressive model masks nothing: it has no mask noise to lower, and no methods to compare."],
    }
    return entries, meter.forwards


def decompose_autoregressive(losses: Tensor, share: Tensor | None = None) -> Decomposition:
    """The decomposition of an autoregressive model's loss: without masks all of its variance over rows is C.

    Args:
        losses: of each row, shape (a,).
        share: of each row in the token mean, shape (a,).

    >>> decompose_autoregressive(torch.tensor([1.0, 3.0])).data.value
    2.0
    """
    nothing = Estimate(value=0.0, stderr=0.0, n=len(losses), unit=UNIT)

    def spread(keep: Tensor) -> float:
        return float(losses[keep].var()) + spread_change(losses[keep], shares_of(share, keep))

    data = jackknife(spread, len(losses), UNIT)
    data = replace(data, ends=of_variance(data.value, data.stderr, len(losses) - 1))
    mean = jackknife(lambda keep: float(token_mean(losses[keep], shares_of(share, keep))), len(losses), "nats/token")
    return Decomposition(mask_pattern=nothing, mask_rate=nothing, data=data, total=data, mean=mean)
