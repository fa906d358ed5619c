"""What to write instead of a key or a value that is wrong: where the meant key stands, or its nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.config.trainer_keys import OURS, TrainerSettings, refusal
from stabledllm.config.typed import arms_of
from stabledllm.config.written import Written
from stabledllm.plain_text import plain_text

ELSEWHERE = {
    "lr": "trainer.learning_rate",
    "scheduler": "trainer.lr_scheduler_type",
    "optimizer": "trainer.optim",
    "warmup": "trainer.warmup_steps",
    "warmup_ratio": "trainer.warmup_steps",
    "grad_clip": "trainer.max_grad_norm",
    "max_grad": "trainer.max_grad_norm",
    "wandb": "trainer.report_to",
    "bs": "batch",
    "batch_size": "batch",
    "train_batch_size": "batch",
    "global_batch_size": "batch",
    "accumulation": "micro_batch",
    "grad_accum": "micro_batch",
    "accumulation_steps": "micro_batch",
    "micro_batch_size": "micro_batch",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "n_epochs": "epochs",
    "max_iters": "steps",
    "iterations": "steps",
    "train_steps": "steps",
    "num_steps": "steps",
    "checkpoint_every": "save_every",
    "save_interval": "save_every",
    "eval_interval": "eval_every",
    "val_every": "eval_every",
    "log_interval": "log_every",
    "output": "out",
    "out_dir": "out",
    "save_dir": "out",
    "model_name": "model",
    "model_path": "model",
    "model_id": "model",
    "model_name_or_path": "model",
    "base_model": "model",
    "pretrained_model_name_or_path": "model",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "attn_implementation": "attention",
    "load_in_4bit": "quantised=4bit",
    "load_in_8bit": "quantised=8bit",
    "quantized": "quantised",
    "qlora": "quantised=4bit",
    "use_lora": "lora.rank",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "r": "lora.rank",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "data_path": "data.train",
    "path": "data.train",
    "eval_data": "data.validation",
    "eval_file": "data.validation",
    "validation_file": "data.validation",
    "val_data": "data.validation",
    "val": "data.validation",
    "valid": "data.validation",
    "dev": "data.validation",
    "test_file": "data.test",
    "val_size": "data.validation_share",
    "val_split": "data.validation_share",
    "validation_split": "data.validation_share",
    "test_size": "data.test_rows",
    "max_samples": "data.train_rows",
    "streaming": "data.streaming",
    "stream": "data.streaming",
    "buffer_size": "data.shuffle_buffer",
    "shuffle_buffer_size": "data.shuffle_buffer",
    "max_length": "data.max_len",
    "max_seq_len": "data.max_len",
    "max_seq_length": "data.max_len",
    "seq_len": "data.max_len",
    "cutoff_len": "data.max_len",
    "block_length": "decoding.block",
    "gen_length": "decoding.length",
    "max_new_tokens": "decoding.length",
    "mask_schedule": "method",
    "noise": "method",
    "sampler": "method",
}
"""Names that other programs have for our keys, which are those of a training run."""
_NEAR = 0.75
"""Least likeness, from 0 to 1, of a name in another group to one that is not known."""
_NONE = ("0", "none", "None", "false", "False", "never", "off", "no", "-1")
"""What people write where a setting is to be left out."""


def instead_of_key(path: tuple, kind: type[BaseModel], group: type[BaseModel]) -> str:
    """The clause on an unknown key: what to write instead. It begins with ``:`` where it says what is wrong as well.

    Args:
        path: the key. kind: the settings that it was looked for in. group: the group of them that it would stand in.
    """
    *above, name = map(str, path)
    base = "base." if kind is ExperimentSettings else ""
    if group is TrainerSettings:
        return f": {refusal(name, base)}"
    if kind is ExperimentSettings and not above and name in TrainSettings.model_fields:
        return f": expected under 'base:', as an experiment varies the run that stands there; write base.{name}"
    if kind is TrainSettings and not above and name in ExperimentSettings.model_fields:
        return (
            " of one training run; an experiment has it: write a YAML of 'base: {extends: THIS_RECIPE}' and 'methods: "
            "[...]' for 'stabledllm experiment'"
        )
    places = dict(_places(kind))
    own = [key.rpartition(".")[2] for key in places if key.rpartition(".")[0] == ".".join(above)]
    if elsewhere := _elsewhere(name, places, base):
        return f"; write {elsewhere}"
    if near := difflib.get_close_matches(name[:200], own, n=1):
        return f" (did you mean '{near[0]}'?); write {'.'.join([*above, near[0]])}"
    leaves = {key.rpartition(".")[2]: key for key in reversed(places)}
    if near := difflib.get_close_matches(name[:200], [*leaves, *ELSEWHERE], n=1, cutoff=_NEAR):
        return f" (did you mean '{near[0]}'?); write {leaves.get(near[0]) or base + ELSEWHERE[near[0]]}"
    listed = f"its keys are {', '.join(own)}" if above and len(own) <= 10 else "docs/settings.md has every key"
    return f"; {listed}"


def instead_of_value(key: str, value: Any, annotation: Any) -> str:
    """The clause on a value of the wrong kind: what to write instead; empty where the expectation says it all."""
    text, arms = str(value) if isinstance(value, str | int) else "", arms_of(annotation)
    if isinstance(value, Written) and any(get_origin(arm) is list for arm in arms) and text[:1] not in ("", "["):
        return f"; write {key}=[{', '.join(one.strip() for one in text.split(','))}]"
    if any("train" in getattr(arm, "model_fields", ()) for arm in arms) and text:
        return f"; write {key}.train={plain_text(text)}"
    if key.endswith("lora") and text in ("true", "True", "1", "yes", "on"):
        return f"; write {key}.rank=16, or RECIPE+lora"
    if NoneType in arms and text in _NONE:
        return f"; write {key}=null to go without"
    if float in arms and text.endswith("%") and text[:-1].replace(".", "", 1).isdigit():
        return f"; write {key}={float(text[:-1]) / 100:g}"
    if bool in arms and text in ("yes", "on", "1", "no", "off", "0"):
        return f"; write {key}={'true' if text in ('yes', 'on', '1') else 'false'}"
    if key.endswith("dtype") and (near := _DTYPES.get(text)):
        return f"; write {near if near.startswith('trainer.') else f'{key}={near}'}"
    return ""


_DTYPES = {
    "bf16": "bfloat16", "torch.bfloat16": "bfloat16", "fp32": "float32", "32": "float32", "torch.float32": "float32",
    "float": "float32", "fp16": "trainer.fp16=true", "float16": "trainer.fp16=true", "half": "trainer.fp16=true",
}  # fmt: skip


def _elsewhere(name: str, places: dict[str, type], base: str) -> str | None:
    """The key that is meant by a name that belongs to another group or another program."""
    if name in TrainerSettings.model_fields and f"{base}trainer" in places:
        return f"{base}trainer.{name}"
    if f"{base}trainer" in places and name in OURS:
        return base + OURS[name]
    exact = [key for key in places if key.rpartition(".")[2] == name]
    if exact:
        return " or ".join(exact[:3])
    meant = base + ELSEWHERE.get(name.lower().replace("-", "_"), "?")
    return meant if meant.partition("=")[0] in places else None


def _places(kind: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a kind of settings, groups included, with its type."""
    for name, field in kind.model_fields.items():
        yield above + name, field.annotation
        for arm in (field.annotation, *get_args(field.annotation)):
            if isinstance(arm, type) and issubclass(arm, BaseModel):
                yield from _places(arm, f"{above}{name}.")
