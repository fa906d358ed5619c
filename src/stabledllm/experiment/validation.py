"""Checks of a recipe that need neither weights nor data nor a device."""

from __future__ import annotations

from stabledllm.build import build_decoding, build_image_decoding
from stabledllm.config.changeable import refuse_unchangeable
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.rows import EncodingOptions
from stabledllm.data.spans import delimiter_pattern
from stabledllm.experiment.at_once import in_words, refuse_contradictions
from stabledllm.experiment.planned import Planned, runs_of
from stabledllm.models.families.transformers_own import own_class
from stabledllm.rewards.named import build_rewards
from stabledllm.training.arguments import training_arguments
from stabledllm.training.callbacks import named_callbacks
from stabledllm.training.features import refuse_checkpointing


def validate(settings: TrainSettings | ExperimentSettings) -> str:
    """Check a recipe as its runs will, with what only torch and transformers can tell; return what it is.

    Raises:
        UserError: names the first thing wrong with it.
    """
    for run in runs_of(settings):
        validate_run(run)
    return in_words(settings)


def validate_run(run: Planned) -> None:
    """Check one run as :func:`check_run` does, its batch and its trainer keys, on a machine without a device.

    Raises:
        UserError: names the first thing wrong.
    """
    check_run(run)
    settings = run.settings
    arguments = training_arguments(settings, without_device=True)
    if (kind := own_class(settings.model)) is not None:
        refuse_checkpointing(kind, settings.model, arguments)


def check_run(run: Planned) -> None:
    """Check one run's method, objective, decoding, data, family, callbacks and rewards. It joins no process group.

    Raises:
        UserError: names the first thing wrong.
    """
    settings, data = run.settings, run.settings.data
    refuse_contradictions(settings, run.method)
    build_decoding(settings.decoding)
    build_image_decoding(settings.image_decoding)
    EncodingOptions(max_len=data.max_len, over_length=data.over_length, pad_response_to=data.pad_response_to)
    delimiter_pattern(data.delimiters or [])
    refuse_unchangeable(settings.allow_changed)
    named_callbacks(settings.callbacks)
    if settings.objective.kind == "grpo":
        build_rewards(settings.grpo)
