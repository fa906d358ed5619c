"""Makes transformers' TrainingArguments from a run's settings and refuses whatever they would ignore."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from stabledllm.config.settings import TrainSettings
from stabledllm.config.trainer_rules import refuse_idle
from stabledllm.errors import UserError, did_you_mean
from stabledllm.planning.memory import micro_batch
from stabledllm.runtime.device import on_cpu
from stabledllm.runtime.lone_process import refuse_lone_process
from stabledllm.training.devices import refuse_unrunnable
from stabledllm.training.trainer import MDMTrainer

# What differs from TrainingArguments' defaults: the paper's recipe, no logging back end unless asked for, and no search
# for unused parameters under DDP (a step without a masked token uses them all the same).
DEFAULTS = {"learning_rate": 5e-5, "weight_decay": 0.1, "lr_scheduler_type": "linear", "report_to": "none"}
DEFAULTS |= {"ddp_find_unused_parameters": False}
_OF_SOME_OPTIMIZERS = ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optim_target_modules")
_PROJECTED = ("galore", "apollo")
"""Beginnings of the names of optimizers that act on some modules only."""


def training_arguments(settings: TrainSettings, *, without_device: bool = False) -> TrainingArguments:
    """The TrainingArguments of a run; ``settings.trainer`` overrides what our own keys do not fix.

    Args:
        without_device: only check them, so that bf16 is accepted on a machine without a device for it.

    Raises:
        UserError: a value is refused or would have no effect, the batch does not divide, or there is one process where
            several were asked for.
    """
    refuse_idle(settings)
    _refuse_newer(settings.trainer)
    if not without_device:
        refuse_lone_process()
    ours = {
        "output_dir": settings.out,
        "seed": settings.seed,
        "max_steps": settings.steps or -1,
        "num_train_epochs": settings.epochs,
        "logging_steps": settings.log_every,
        "eval_strategy": "steps" if settings.eval_every else "no",
        "eval_steps": settings.eval_every,
        "save_strategy": "steps" if settings.save_every else "no",
        "save_steps": settings.save_every or 500,
        "restore_callback_states_from_checkpoint": True,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
    }
    # Without it transformers does not see, where there is no accelerator, that this is one of several processes.
    place = {"use_cpu": True} if on_cpu() else {}
    device_keys = {name: settings.trainer[name] for name in ("use_cpu", "ddp_backend") if name in settings.trainer}
    with refuse_unrunnable("launch configuration"):
        ranks = TrainingArguments(output_dir=settings.out, report_to="none", **(place | device_keys)).world_size
    micro = micro_batch(settings, ranks)
    sizes = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch // (micro * ranks),
    }
    pinned = {"dataloader_pin_memory": torch.cuda.is_available()}
    device = {"use_cpu": True} if without_device else {}
    trainer = _renamed(settings.trainer)
    with refuse_unrunnable("key 'trainer'"):
        arguments = TrainingArguments(**(DEFAULTS | pinned | place | trainer | ours | sizes | device))
        if not without_device:
            MDMTrainer.get_optimizer_cls_and_kwargs(arguments)
    _check_optimizer(settings.trainer, arguments)
    _check_schedule(settings, arguments)
    _check_reporting(arguments)
    return arguments


def _refuse_newer(trainer: dict[str, Any]) -> None:
    fields = TrainingArguments.__dataclass_fields__
    for name in _renamed(trainer):
        if name not in fields:
            raise UserError(f"key 'trainer.{name}': unknown to TrainingArguments{did_you_mean(name, fields, most=8)}.")


def _renamed(trainer: dict[str, Any]) -> dict[str, Any]:
    """The keys, with ``gradient_checkpointing`` under the name that this version of transformers has for it."""
    old, new, fields = "gradient_checkpointing", "activation_checkpointing", TrainingArguments.__dataclass_fields__
    rename = {name: name.replace(old, new) for name in trainer if name.replace(old, new) in fields}
    return {rename.get(name, name): value for name, value in trainer.items()}


def _check_optimizer(trainer: dict[str, Any], arguments: TrainingArguments) -> None:
    """Refuse keys that the optimizer does not use, which transformers would drop silently."""
    optim = arguments.optim.value
    for name in _OF_SOME_OPTIMIZERS:
        given, default = trainer.get(name), TrainingArguments.__dataclass_fields__[name].default
        if given is None or given == default:
            continue
        without = copy.copy(arguments)
        setattr(without, name, default)
        try:
            idle = name != "optim_target_modules" and _optimizer(arguments) == _optimizer(without)
        except (ImportError, RuntimeError):
            return  # the optimizer is not installed here; that is reported where it is needed
        except (ValueError, TypeError, AttributeError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"key 'trainer.{name}': expected what '{optim}' takes, found '{given}' ({text}).") from None
        if idle or (name == "optim_target_modules" and not optim.startswith(_PROJECTED)):
            raise UserError(f"key 'trainer.{name}': expected none, since '{optim}' does not use it, found '{given}'.")


def _optimizer(arguments: TrainingArguments) -> tuple:
    return MDMTrainer.get_optimizer_cls_and_kwargs(arguments)


def _check_schedule(settings: TrainSettings, arguments: TrainingArguments) -> None:
    """Refuse a schedule's wrong options before a model is loaded, by making the schedule for a dummy optimizer."""
    kind, options = arguments.lr_scheduler_type.value, arguments.lr_scheduler_kwargs or {}
    steps = settings.steps or 1000
    warm = arguments.get_warmup_steps(steps)
    if kind == "warmup_stable_decay" and settings.steps is not None:
        decay = options.get("num_decay_steps")
        if not isinstance(decay, int) or isinstance(decay, bool) or decay < 0 or warm + decay > steps:
            # transformers accepts a warm-up and a decay that do not fit, and then never reaches the given rate.
            raise UserError(
                f"key 'trainer.lr_scheduler_kwargs.num_decay_steps': expected a decay that fits the run's {steps} "
                f"steps behind {warm} of warm-up, found {decay}."
            )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = get_scheduler(
                arguments.lr_scheduler_type, optimizer, warm, steps, scheduler_specific_kwargs=dict(options)
            )
            rates = scheduler.get_last_lr() if hasattr(scheduler, "get_last_lr") else []
    except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"key 'trainer.lr_scheduler_kwargs': expected options of '{kind}', found {text}.") from None
    if any(isinstance(rate, complex) or not math.isfinite(rate) for rate in rates):
        raise UserError(f"key 'trainer.lr_scheduler_kwargs': expected finite learning rates, found {rates[0]}.")


def _check_reporting(arguments: TrainingArguments) -> None:
    available = get_available_reporting_integrations() if arguments.report_to else []
    for name in arguments.report_to:
        if name not in available:
            choices = ", ".join(["none", *available])
            raise UserError(
                f"key 'trainer.report_to': expected a back end that is installed ({choices}), found '{name}'."
            )
