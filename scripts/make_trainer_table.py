"""Writes the table of what transformers' TrainingArguments accept, which commands check without importing transformers.

Usage: python scripts/make_trainer_table.py [--check]. With ``--check`` nothing is written; exit code 1 where the
committed table is not that of the installed version. ``tests/config/test_trainer_table.py`` does the same.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import sys
import tempfile
import types
import typing
from enum import Enum
from pathlib import Path

import transformers
from transformers import TrainingArguments
from transformers.integrations import integration_utils
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from stabledllm.training.trainer import MDMTrainer

TABLE = Path(__file__).parents[1] / "src" / "stabledllm" / "config" / "trainer_table.json"
PROBES = {"adam_beta1": 0.123, "adam_beta2": 0.456, "adam_epsilon": 1e-3}
"""Fields that some optimizers ignore, with a value that is no default."""
_OWN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "scheduler_specific_kwargs", "kwargs")
"""Parameters of a schedule that transformers fills in."""


def kinds(annotation: object) -> list[str]:
    """The plain kinds of value that a field's type takes, sorted."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return sorted({kind for arm in typing.get_args(annotation) for kind in kinds(arm)})
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ["str"]
    origin = typing.get_origin(annotation) or annotation
    return [getattr(origin, "__name__", str(origin))]


def uses(optimizer: str) -> list[str] | None:
    """The fields among PROBES that change an optimizer; None where it is not installed here."""
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(output_dir=out, report_to="none", use_cpu=True, optim=optimizer)
    try:
        before = repr(MDMTrainer.get_optimizer_cls_and_kwargs(arguments))
    except (ImportError, RuntimeError, ValueError, AttributeError, TypeError):
        return None
    used = []
    for name, value in PROBES.items():
        changed = copy.copy(arguments)
        setattr(changed, name, value)
        if repr(MDMTrainer.get_optimizer_cls_and_kwargs(changed)) != before:
            used.append(name)
    return used


def options(schedule: str) -> dict[str, list[str]]:
    """The options that a schedule takes, and those of them that it needs."""
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(schedule)]).parameters
    own = {name: one for name, one in parameters.items() if name not in _OWN}
    free = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return {
        "options": sorted(own) if not free else ["*"],
        "needs": sorted(name for name, one in own.items() if one.default is one.empty),
    }


def table() -> dict:
    """The whole table for the installed version."""
    fields = TrainingArguments.__dataclass_fields__
    return {
        "fields": {name: kinds(fields[name].type) for name in sorted(fields)},
        "optimizers": {one.value: uses(one.value) for one in OptimizerNames},
        "schedules": {one.value: options(one.value) for one in SchedulerType},
        "reporters": sorted(integration_utils.INTEGRATION_TO_CALLBACK),
    }


def main() -> int:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    now = json.dumps({"transformers": transformers.__version__} | table(), indent=1) + "\n"
    if parser.parse_args().check:
        return int(TABLE.read_text(encoding="utf-8") != now)
    TABLE.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
