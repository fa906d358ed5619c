"""Every check of a recipe that needs neither weights nor data nor a device."""

from __future__ import annotations

from pathlib import Path

from stabledllm.build import build_decoding, build_image_decoding, build_method, build_objective
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.rows import EncodingOptions
from stabledllm.data.sources import KINDS
from stabledllm.data.spans import delimiter_pattern
from stabledllm.errors import UserError, did_you_mean
from stabledllm.experiment.budget import rows_per_step
from stabledllm.models.families.transformers_own import own_class
from stabledllm.models.shapes import Shape, known_shape
from stabledllm.noise.blocks import refuse_for_blocks
from stabledllm.noise.methods import AUTOREGRESSIVE
from stabledllm.training.arguments import training_arguments
from stabledllm.training.earlier import refuse_unchangeable
from stabledllm.training.features import refuse_checkpointing


def validate(settings: TrainSettings | ExperimentSettings) -> str:
    """What the recipe is, in a few words.

    Raises:
        UserError: the first thing wrong with it.
    """
    for run in runs_of(settings):
        validate_run(run)
    if isinstance(settings, TrainSettings):
        return f"a training run of {settings.model} with method {settings.method}"
    return f"an experiment of {len(settings.methods)} methods x {len(settings.seeds)} seeds with {settings.base.model}"


def runs_of(settings: TrainSettings | ExperimentSettings) -> list[TrainSettings]:
    """One run of every method.

    Raises:
        UserError: a method that is unknown, or whose views do not divide the batch.
    """
    if isinstance(settings, TrainSettings):
        return [settings]
    return [
        settings.base.model_copy(update={"method": name, "batch": rows_per_step(name, settings)})
        for name in settings.methods
    ]


def validate_run(settings: TrainSettings) -> None:
    """Check one run as :func:`check_run` does, its batch and its trainer keys, on a machine without a device.

    Raises:
        UserError: the first thing wrong.
    """
    check_run(settings)
    arguments = training_arguments(settings, without_device=True)
    if (kind := own_class(settings.model)) is not None:
        refuse_checkpointing(kind, settings.model, arguments)


def check_run(settings: TrainSettings) -> None:
    """Check one run's method, objective, decoding, data and family; joins no process group, so any rank may call it.

    Raises:
        UserError: the first thing wrong.
    """
    shape = known_shape(settings.model)
    check_family(settings, shape)
    method = build_method(settings.method, settings.method_options)
    if settings.p_of_t and not (method.needs_p or method.adaptive):
        raise UserError(f"key 'p_of_t': expected a method with ppots or adaptive, found '{settings.method}'.")
    method.under(build_objective(settings.objective))
    if settings.block_size:
        refuse_for_blocks(method, packing=settings.packing)
    build_decoding(settings.decoding)
    build_image_decoding(settings.image_decoding)
    data = settings.data
    for spec in (data.train, data.validation, data.test):
        kind = (spec or KINDS[0]).partition(":")[0]
        if kind not in KINDS:
            raise UserError(f"data '{spec}': unknown kind '{kind}'{did_you_mean(kind, KINDS)}.")
    EncodingOptions(max_len=data.max_len, over_length=data.over_length, pad_response_to=data.pad_response_to)
    delimiter_pattern(data.delimiters or [])
    if settings.quantised and not settings.lora and not (Path(settings.model) / "adapter_config.json").is_file():
        raise UserError(f"key 'quantised': expected 'lora' beside it, found a run that trains all of {settings.model}.")
    if settings.lora and shape:
        shape.targets(settings.lora.target_modules)
    refuse_unchangeable(settings.allow_changed)


def check_family(settings: TrainSettings, shape: Shape | None) -> None:
    """Masks are for masked diffusion models, next-token prediction for autoregressive ones.

    Raises:
        UserError: the other way round.
    """
    causal = shape.causal if shape else settings.family == "arm" if settings.family != "auto" else None
    kind = {True: "an autoregressive model", False: "a masked diffusion model"}.get(causal)
    if causal is not None and causal != (settings.method == AUTOREGRESSIVE):
        wanted = f"method '{AUTOREGRESSIVE}'" if causal else "a method that masks tokens"
        raise UserError(f"model '{settings.model}' is {kind}: expected {wanted}, found '{settings.method}'.")
