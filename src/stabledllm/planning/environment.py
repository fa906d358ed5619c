"""Reads how this process was launched, as far as its memory depends on it, and refuses runs that do not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.shapes import known_shape
from stabledllm.planning.advice import check_fits
from stabledllm.planning.layout import Layout, Sharding
from stabledllm.planning.memory import estimate, views_of
from stabledllm.runtime.files import read_json


def device_memory() -> float | None:
    """The memory of this process's accelerator in bytes, or None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    rank = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    return float(torch.cuda.get_device_properties(rank).total_memory)


def launched_layout(trainer: Mapping, environment: Mapping[str, str], longest: int) -> Layout:
    """The devices and the sharding that the variables of ``accelerate launch`` or ``trainer.deepspeed`` say."""
    return Layout(int(environment.get("WORLD_SIZE", 1)), _sharding(trainer, environment), longest)


def _sharding(trainer: Mapping, environment: Mapping[str, str]) -> Sharding:
    if environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp2"
    config = trainer.get("deepspeed")
    used = environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if not config and used:
        config = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if isinstance(config, str) and config != "none" and Path(config).is_file():
        config = read_json(Path(config))
    if isinstance(config, Mapping):
        try:
            zero = config.get("zero_optimization", {})
            places = [zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param")]
            stage = int(zero.get("stage", 0))
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                "key 'trainer.deepspeed': expected zero_optimization with a stage and offload_... with a device each, "
                "found something else."
            ) from None
    elif used:
        name = "ACCELERATE_DEEPSPEED_OFFLOAD_{}_DEVICE"
        places = [environment.get(name.format(what), "none") for what in ("OPTIMIZER", "PARAM")]
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
    else:
        return "ddp"
    offloaded = "_offload" if any(place not in ("none", None) for place in places) else ""
    return {2: f"zero2{offloaded}", 3: f"zero3{offloaded}"}.get(stage, "ddp")


def fitting_views(settings: TrainSettings, longest: int) -> TrainSettings:
    """The settings with ``views_per_forward: auto`` replaced by the most views of a row that fit.

    All views are taken on a CPU, where the model's shape is not known, and under DeepSpeed, which cannot split them.
    """
    if settings.views_per_forward != "auto":
        return settings
    every = settings.model_copy(update={"views_per_forward": None})
    memory, shape = device_memory(), known_shape(settings.model)
    layout = launched_layout(settings.trainer, os.environ, longest)
    if memory is None or shape is None or settings.trainer.get("use_cpu") or layout.sharding.startswith("zero"):
        return every
    for views in range(views_of(settings), 1, -1):
        chosen = settings.model_copy(update={"views_per_forward": views})
        if estimate(chosen, shape, layout).needed <= memory:
            return chosen
    return settings.model_copy(update={"views_per_forward": 1})


def refuse_too_large(settings: TrainSettings, longest: int) -> None:
    """Refuse a run that cannot fit this process's accelerator with rows of at most ``longest`` tokens.

    Does nothing on a CPU, or for a model whose shape is not known before it is loaded.

    Raises:
        UserError: gives the estimate in one sentence, and the cheapest change that fits.
    """
    memory, shape = device_memory(), known_shape(settings.model)
    if memory and shape and not settings.trainer.get("use_cpu"):
        layout = launched_layout(settings.trainer, os.environ, longest)
        check_fits(settings, shape, layout, memory, what=f"model '{settings.model}'")
