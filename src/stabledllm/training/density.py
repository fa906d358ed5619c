"""The density that a run draws t from: given, resumed, or probed and fitted before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate.state import PartialState
from transformers import TrainingArguments

from stabledllm.config.settings import TrainSettings
from stabledllm.data.rows import TokenRow
from stabledllm.lab.fit import save_fit
from stabledllm.lab.probe_and_fit import probe_and_fit
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.methods import Method
from stabledllm.ppots.record import FittedDensity, refuse_other
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
    """The run's p(t), always the one that lies in the run's folder: rank 0 makes it, every rank reads it.

    A resumed run takes the checkpoint's. ``settings.p_of_t`` names one fitted before, for the same method.
    """
    path = Path(settings.out) / DENSITY
    state = PartialState()
    if state.is_main_process:
        if checkpoint:
            density = FittedDensity.load(checkpoint / DENSITY)
        elif settings.p_of_t:
            density = FittedDensity.load(Path(settings.p_of_t))
            refuse_other(density, method, settings.p_of_t, settings.block_size)
        else:
            loaded.model.to(arguments.device)
            density = probe_and_fit(
                loaded,
                rows,
                method,
                settings.ppots,
                settings.seed,
                settings.batch,
                block_size=settings.block_size,
            )
            if will_shard(arguments):  # the whole model beside its shards would not fit
                loaded.model.to("cpu")
        save_fit(density, path, say)
    state.wait_for_everyone()
    return FittedDensity.load(path)
