"""Obtains the density that a run draws t from: given, resumed, or probed and fitted before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate.state import PartialState
from transformers import TrainingArguments

from stabledllm.config.settings import TrainSettings
from stabledllm.data.rows import TokenRow
from stabledllm.lab.fit import fitted_for, save_fit
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.methods import Method
from stabledllm.ppots.record import FittedDensity
from stabledllm.preference_checks import check_pair_density
from stabledllm.training.checkpoints import DENSITY
from stabledllm.training.devices import will_shard


def obtain_density(
    settings: TrainSettings,
    method: Method,
    loaded: LoadedModel,
    rows: list[TokenRow],
    arguments: TrainingArguments,
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> FittedDensity:
    """The run's p(t): rank 0 puts it into the run's folder, and every rank reads it from there.

    A resumed run takes the checkpoint's. ``settings.p_of_t`` names one that was fitted before for the same method.

    Raises:
        UserError: a density that was fitted for something else, or none for training on pairs.
    """
    path = Path(settings.out) / DENSITY
    state = PartialState()
    if state.is_main_process:
        if checkpoint:
            density = FittedDensity.load(checkpoint / DENSITY)
        elif settings.p_of_t:
            density = FittedDensity.load(Path(settings.p_of_t))
            kind = settings.objective.kind
            density.refuse_other(method, settings.p_of_t, settings.block_size, settings.block_t, kind)
        else:
            check_pair_density(settings, method)
            loaded.model.to(arguments.device)
            density = fitted_for(settings, method, loaded, rows)
            if will_shard(arguments):  # the whole model beside its shards would not fit
                loaded.model.to("cpu")
        save_fit(density, path, say)
    state.wait_for_everyone()
    return FittedDensity.load(path)
