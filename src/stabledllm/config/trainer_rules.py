"""Refuses ``trainer`` keys that act only beside another key, where that other key is missing."""

from __future__ import annotations

from collections.abc import Callable

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError

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
    """Refuse the ``trainer`` keys that would have no effect here.

    Raises:
        UserError: names the first of them and what to write beside it.
    """
    given = settings.trainer
    for name, (acts, needed) in RULES.items():
        if given.get(name) and not acts(settings):
            raise UserError(f"key 'trainer.{name}': expected {needed}, found none.")
    for tail in ("", "_kwargs"):
        if given.get(_OLD + tail) is not None and given.get(_NEW + tail) is not None:
            raise UserError(f"key 'trainer.{_OLD}{tail}': expected one of its two names, found both.")
