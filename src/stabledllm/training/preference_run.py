"""What a run on preferences has besides other runs: the loss of pairs, the estimator of their bounds, a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stabledllm.config.settings import TrainSettings
from stabledllm.data.token_rows import TokenRow
from stabledllm.evaluation.identity import digest_of
from stabledllm.method_checks import standing_still
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Method
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.reference import KeptValues, Reference, values_of
from stabledllm.preference_checks import check_pair_density
from stabledllm.runtime.launched import is_main_process
from stabledllm.runtime.showing import bar
from stabledllm.training.devices import is_sharded
from stabledllm.training.preferences import EVAL_SEED, DPOTrainer, pairs_of
from stabledllm.training.references import reference_of

KEPT = "reference_values.safetensors"
"""In the run's folder: the values of a reference that are ``kept``."""
OF = "of"
"""In the file's metadata: a digest of the pairs and the noise that the values are of."""


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
    if method.adaptive:
        check_pair_density(settings, method)
        method, density = Method.parse(standing_still(method), method.options, method.objective), density or Uniform()
    estimator = BoundEstimator(
        method,
        dpo.budget,
        density=density,
        eps=settings.objective.eps,
        tokens_per_batch=dpo.tokens_per_forward,
        packing=settings.packing,
    )
    sides = {"rejected": rejected["train"], "eval_rejected": rejected.get("validation", [])}
    pairs = {"train": pairs_of(rows["train"], sides["rejected"])}
    pairs["validation"] = pairs_of(rows["validation"], sides["eval_rejected"])
    loss = DPOLoss(dpo.beta, dpo.correction, dpo.sft)
    return sides | {"loss": loss, "estimator": estimator, "reference": _reference(settings, loaded, pairs, resumed)}


def _reference(
    settings: TrainSettings, loaded: LoadedModel, pairs: dict[str, list[Pair]], resumed: bool
) -> Callable[[DPOTrainer], Reference]:
    """What makes the reference, from a Trainer that has not made a step and whose model is on its device."""
    kind = settings.dpo.held_against(adapters=settings.lora is not None)
    if kind == "kept":
        return partial(_kept, settings=settings, pairs=pairs, resumed=resumed)
    return reference_of(settings, loaded, kind, "dpo.reference")


def _kept(trainer: DPOTrainer, *, settings: TrainSettings, pairs: dict[str, list[Pair]], resumed: bool) -> KeptValues:
    """The values of the model as it is loaded, from the run's folder where a killed run has left the same."""
    path, per_epoch = Path(settings.out) / KEPT, math.ceil(len(pairs["train"]) / settings.batch)
    epochs = math.ceil((settings.steps or settings.epochs * per_epoch) / per_epoch)
    of = _what_decides(settings, trainer, pairs)

    def there() -> dict[str, torch.Tensor] | None:
        found = _read(path, of) if path.is_file() else None
        return found if found and len(found["train"]) >= epochs else None

    if not is_sharded(trainer):
        found = (there() if resumed else None) or _all_values(trainer, settings, pairs, epochs, path, of)
        return KeptValues(found["train"], found.get("validation"))
    # Until its first step the model is whole on the first rank, and on the others perhaps not.
    if is_main_process() and not (resumed and there()):
        trainer.model.to(trainer.args.device)
        _all_values(trainer, settings, pairs, epochs, path, of)
        trainer.model.to("cpu")  # the whole model beside its shards would not fit
    trainer.accelerator.wait_for_everyone()
    found = load_file(path)
    return KeptValues(found["train"], found.get("validation"))


def _all_values(
    trainer: DPOTrainer, settings: TrainSettings, pairs: dict[str, list[Pair]], epochs: int, path: Path, of: str
) -> dict[str, torch.Tensor]:
    """The values of all pairs and epochs, which the first rank writes too."""
    wanted = [("train", settings.seed, epoch) for epoch in range(epochs)]
    wanted += [("validation", EVAL_SEED, 0)] if pairs["validation"] else []
    tables = []
    with (
        bar(sum(len(pairs[split]) for split, *_ in wanted), "reference", "pair") as shown,
        trainer.accelerator.autocast(),
    ):
        for split, seed, epoch in wanted:
            tables.append(
                values_of(
                    trainer.model,
                    pairs[split],
                    trainer.estimator,
                    seed=seed,
                    epoch=epoch,
                    at_once=settings.micro_batch or 8,
                    held_out=split != "train",
                    progress=shown.update,
                )
            )
    kept = {"train": torch.stack(tables[:epochs])} | ({"validation": tables[-1]} if pairs["validation"] else {})
    if is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file({name: table.contiguous() for name, table in kept.items()}, part, metadata={OF: of})
        part.replace(path)
    return kept


def _what_decides(settings: TrainSettings, trainer: DPOTrainer, pairs: dict[str, list[Pair]]) -> str:
    """A digest of what the values depend on and a run may change on its way: the pairs and their noise."""
    rows = [
        [list(row.input_ids), row.prompt_length]
        for both in pairs.values()
        for p in both
        for row in (p.chosen, p.rejected)
    ]
    return digest_of([settings.seed, trainer.args.bf16, trainer.args.fp16, rows])


def _read(path: Path, of: str) -> dict[str, torch.Tensor] | None:
    with safe_open(path, "pt") as held:
        if (held.metadata() or {}).get(OF) != of:
            return None
    return load_file(path)
