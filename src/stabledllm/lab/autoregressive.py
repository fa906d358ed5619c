"""The decomposition of an autoregressive model's loss: no token is masked, so that all of its variance is C."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.build import build_objective
from stabledllm.config.settings import DecomposeSettings
from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.meter import LossMeter
from stabledllm.lab.bar import progress_bar
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.fits import check_autoregressive
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import AUTOREGRESSIVE
from stabledllm.stats.shares import shares_of
from stabledllm.variance.components import Decomposition, by_length, decompose_autoregressive


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
    share = meter.shares(method) if objective.normalization == "token" else None

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
