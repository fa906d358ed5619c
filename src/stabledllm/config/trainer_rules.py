"""Refuses ``trainer`` keys that would do nothing, or that transformers would refuse, before it is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stabledllm.config.settings import TrainSettings
from stabledllm.config.trainer_keys import TrainerSettings
from stabledllm.config.trainer_table import OPTIMIZERS, REPORTERS, SCHEDULES
from stabledllm.errors import Mistakes, did_you_mean

_OLD, _NEW = "gradient_checkpointing", "activation_checkpointing"
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")


def _reports(settings: TrainSettings) -> bool:
    return settings.trainer.get("report_to") not in (None, "none", ["none"], [])


def _recomputes(settings: TrainSettings) -> bool:
    return bool(settings.trainer.get(_OLD) or settings.trainer.get(_NEW))


def _has_workers(settings: TrainSettings) -> bool:
    return settings.trainer.get("dataloader_num_workers", 0) > 0


def _may_compile(settings: TrainSettings) -> bool:
    return settings.trainer.get("torch_compile", True)


def _warms_up(settings: TrainSettings) -> bool:
    return settings.trainer.get("lr_scheduler_type") not in _WITHOUT_WARMUP


RULES: dict[str, tuple[Callable[[TrainSettings], bool], str]] = {
    "run_name": (_reports, "trainer.report_to beside it"),
    "eval_delay": (lambda settings: settings.eval_every is not None, "eval_every beside it"),
    "save_total_limit": (lambda settings: settings.save_every is not None, "save_every beside it"),
    f"{_OLD}_kwargs": (_recomputes, f"trainer.{_OLD}=true beside it"),
    f"{_NEW}_kwargs": (_recomputes, f"trainer.{_OLD}=true beside it"),
    "dataloader_persistent_workers": (_has_workers, "trainer.dataloader_num_workers of at least 1 beside it"),
    "dataloader_prefetch_factor": (_has_workers, "trainer.dataloader_num_workers of at least 1 beside it"),
    "dataloader_multiprocessing_context": (_has_workers, "trainer.dataloader_num_workers of at least 1 beside it"),
    "torch_compile_backend": (_may_compile, "trainer.torch_compile=true beside it"),
    "torch_compile_mode": (_may_compile, "trainer.torch_compile=true beside it"),
    "warmup_steps": (_warms_up, "an lr_scheduler_type that warms up, such as constant_with_warmup"),
}
"""For each key: whether it acts under these settings, and what it needs for that."""


def refuse_idle(settings: TrainSettings) -> None:
    """Refuse the ``trainer`` keys that would have no effect here, or that transformers would refuse.

    Raises:
        Mistakes: names each of them and what to write.
    """
    if sentences := [*_alone(settings), *_of_table(settings.trainer)]:
        raise Mistakes(sentences)


def _alone(settings: TrainSettings) -> Iterator[str]:
    given = settings.trainer
    for name, (acts, needed) in RULES.items():
        if given.get(name) and not acts(settings):
            yield f"key 'trainer.{name}': expected {needed}, found none."
    for tail in ("", "_kwargs"):
        if given.get(_OLD + tail) is not None and given.get(_NEW + tail) is not None:
            yield f"key 'trainer.{_OLD}{tail}': expected one of its two names, found both."
    if given.get("bf16") and given.get("fp16"):
        yield "key 'trainer.fp16': expected one kind of mixed precision, found trainer.bf16 as well; leave one out."


def _of_table(given: dict[str, Any]) -> Iterator[str]:
    """What the table of TrainingArguments says of these keys, as far as it needs no package."""
    optim = given.get("optim", TrainerSettings.model_fields["optim"].default)
    package = next((package for names, package in _OF_OPTIMIZERS.items() if re.search(names, optim)), None)
    if package and not find_spec(package):
        yield (
            f"key 'trainer.optim': expected an optimizer whose package is installed, found '{optim}', which takes "
            f"{package}; install it, or write adamw_torch."
        )
    used = OPTIMIZERS.get(optim)
    for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        default = TrainerSettings.model_fields[name].default
        if used is not None and name not in used and given.get(name, default) != default:
            yield f"key 'trainer.{name}': expected none, since '{optim}' does not use it, found '{given[name]}'."
    kind = given.get("lr_scheduler_type", TrainerSettings.model_fields["lr_scheduler_type"].default)
    options, schedule = given.get("lr_scheduler_kwargs") or {}, SCHEDULES[kind]
    key = f"key 'trainer.lr_scheduler_kwargs': expected options of '{kind}'"
    for name in options:
        if name not in schedule["options"] and "*" not in schedule["options"]:
            known = did_you_mean(str(name), schedule["options"]) if schedule["options"] else ", which has none"
            yield f"{key}, found '{name}'{known}."
    for name in schedule["needs"]:
        if name not in options:
            yield f"key 'trainer.lr_scheduler_kwargs.{name}': expected a value, as '{kind}' needs one, found none."
    if "with_min_lr" in kind and not {"min_lr", "min_lr_rate"} & set(options):
        yield (
            f"key 'trainer.lr_scheduler_kwargs': expected min_lr or min_lr_rate, as '{kind}' needs one, found neither; "
            f'write "trainer.lr_scheduler_kwargs={{min_lr_rate: 0.1}}".'
        )
    reports = given.get("report_to")
    for name in [reports] if isinstance(reports, str) else reports or []:
        modules = _MODULES.get(name, (name,))
        if name in ("none", "all"):
            continue
        if name not in REPORTERS:
            near = did_you_mean(name, ["none", *REPORTERS])
            yield f"key 'trainer.report_to': expected a back end, found '{name}'{near}."
        elif not any(find_spec(module) for module in modules):
            yield (
                f"key 'trainer.report_to': expected a back end that is installed, found '{name}', which is not; pip "
                f"install {modules[0]}, or write none."
            )
    config = given.get("deepspeed")
    if isinstance(config, str) and not Path(config).expanduser().is_file() and not config.lstrip().startswith("{"):
        yield f"key 'trainer.deepspeed': expected a file, found nothing at '{config}'."


_OF_OPTIMIZERS = {
    "adamw_torch_[48]bit": "torchao",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "anyprecision": "torchdistx",
    "apex": "apex",
    "bnb|_8bit|_32bit|paged|ademamix|lion": "bitsandbytes",
}
"""The packages of optimizers that torch does not bring, by a pattern of their names; the first that fits counts."""
_MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"), "azure_ml": ("azureml",), "flyte": ("flytekit",),
    "kubeflow": ("kubeflow",),
}  # fmt: skip
"""Packages of the back ends that are not called like them."""
