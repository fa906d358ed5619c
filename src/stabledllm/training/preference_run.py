"""What a run on preferences has besides other runs: the loss of pairs, the estimator of their bounds, a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stabledllm.config.settings import TrainSettings
from stabledllm.data.token_rows import TokenRow
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.preference.draws import BoundEstimator
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.reference import AdapterOff, FrozenCopy, KeptValues, Reference, values_of
from stabledllm.runtime.launched import is_main_process
from stabledllm.runtime.showing import bar
from stabledllm.training.preferences import EVAL_SEED, pairs_of

KEPT = "reference_values.safetensors"
"""In the run's folder: the values of a reference that are ``kept``."""


def of_pairs(
    settings: TrainSettings,
    method: Method,
    loaded: LoadedModel,
    density: TSampler | None,
    rows: Mapping[str, Sequence[TokenRow]],
    rejected: Mapping[str, Sequence[TokenRow]],
    *,
    resumed: bool,
) -> dict:
    """The arguments of :class:`DPOTrainer` besides those of every Trainer.

    Args:
        rows, rejected: of ``train`` and ``validation``. resumed: whether values of the reference may be there already.
    """
    dpo = settings.dpo
    estimator = BoundEstimator(
        method, dpo.budget, density=density, eps=settings.objective.eps, tokens_per_batch=dpo.tokens_per_forward
    )
    sides = {"rejected": rejected["train"], "eval_rejected": rejected.get("validation", [])}
    pairs = {"train": pairs_of(rows["train"], sides["rejected"])}
    pairs["validation"] = pairs_of(rows["validation"], sides["eval_rejected"])
    kind = dpo.reference if dpo.reference != "auto" else "adapter" if settings.lora else "copy"
    reference: Reference
    if kind == "kept":
        reference = _kept(settings, loaded, pairs, estimator, resumed=resumed)
    else:
        reference = {"copy": FrozenCopy, "adapter": AdapterOff}[kind](loaded.model)
    loss = DPOLoss(dpo.beta, dpo.correction, dpo.sft)
    return sides | {"loss": loss, "estimator": estimator, "reference": reference}


def _kept(settings: TrainSettings, loaded: LoadedModel, pairs: dict, estimator: BoundEstimator, *, resumed: bool):
    """The values of the model as it is loaded, from the run's folder where a killed run has left them."""
    path, per_epoch = Path(settings.out) / KEPT, math.ceil(len(pairs["train"]) / settings.batch)
    epochs = math.ceil((settings.steps or settings.epochs * per_epoch) / per_epoch)
    if resumed and path.is_file():
        found = load_file(path)
        if len(found["train"]) >= epochs:
            return KeptValues(found["train"], found.get("validation"))
    wanted = [("train", settings.seed, epoch) for epoch in range(epochs)]
    wanted += [("validation", EVAL_SEED, 0)] if pairs["validation"] else []
    tables = []
    with bar(sum(len(pairs[split]) for split, *_ in wanted), "reference", "pair") as shown:
        for split, seed, epoch in wanted:
            tables.append(
                values_of(
                    loaded.model,
                    pairs[split],
                    estimator,
                    seed=seed,
                    epoch=epoch,
                    at_once=settings.micro_batch or 8,
                    progress=shown.update,
                )
            )
    kept = {"train": torch.stack(tables[:epochs])} | ({"validation": tables[-1]} if pairs["validation"] else {})
    if is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file({name: table.contiguous() for name, table in kept.items()}, part)
        part.replace(path)
    return KeptValues(kept["train"], kept.get("validation"))
