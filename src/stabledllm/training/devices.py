"""Helpers of runs on many devices: checks of the launch, saving whole models from shards, and ranks that agree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from transformers import Trainer, TrainingArguments

from stabledllm.errors import UserError


@contextmanager
def refuse_unrunnable(what: str) -> Iterator[None]:
    """Turn errors of transformers and accelerate about settings or missing packages into a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, ImportError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{what}: expected settings that this machine can run, found: {message}") from None


def refuse_silent_changes(arguments: TrainingArguments) -> None:
    """Refuse settings that would silently have no effect.

    accelerate drops sharding on CPUs, transformers drops float16 there, and both ignore ranks that they do not see.

    Raises:
        UserError: FSDP, DeepSpeed or float16 without an accelerator, or ranks that would each train alone.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.world_size != launched:
        raise UserError(f"launch: expected {launched} processes to train together, found {arguments.world_size}.")
    for name in ("FSDP", "DEEPSPEED"):
        if _asked(name) and PartialState().distributed_type == DistributedType.MULTI_CPU:
            raise UserError(f"launch configuration: expected accelerators to shard over ({name}), found CPUs; use DDP.")
    if arguments.fp16 and arguments.device.type == "cpu":
        raise UserError("key 'trainer.fp16': expected an accelerator, found a CPU; leave it out, or take bf16.")


def _asked(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def will_shard(arguments: TrainingArguments) -> bool:
    """Whether the Trainer will shard the weights over the ranks, so that the whole model should not stay on a GPU."""
    return _asked("FSDP") or getattr(arguments, "deepspeed_plugin", None) is not None


def is_sharded(trainer: Trainer) -> bool:
    """Whether a forward pass gathers weights from all ranks (FSDP, ZeRO-3), so that all must run the same passes."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def fsdp_version(trainer: Trainer) -> int | None:
    """The version of FSDP that shards the Trainer's weights; None without it."""
    return trainer.accelerator.state.fsdp_plugin.fsdp_version if trainer.is_fsdp_enabled else None


def refuse_sharding_in_parts(kind: str, *, fsdp_version: int | None, deepspeed: bool) -> None:
    """Refuse the ways of sharding that cannot run several backward passes in a step, or a second model beside it.

    Args:
        kind: the objective. fsdp_version: of the launch configuration; None for whole weights.

    Raises:
        UserError: DeepSpeed, or the first version of FSDP.
    """
    if deepspeed or fsdp_version == 1:
        found = "DeepSpeed" if deepspeed else "FSDP version 1"
        raise UserError(
            f"objective.kind={kind}: expected whole weights on every device or FSDP version 2, found {found}; launch "
            f"with 'stabledllm cp accelerate/fsdp2', or accelerate/ddp."
        )


def shard_beside(trainer: Trainer, model: torch.nn.Module) -> torch.nn.Module:
    """A second model, not trained, sharded as the Trainer's own is; every rank must call this.

    Without sharding it moves to the Trainer's device.
    """
    if not trainer.is_fsdp_enabled:
        return model.to(trainer.args.device)
    return fsdp2_prepare_model(trainer.accelerator, model)


def save_whole(trainer: Trainer, folder: Path) -> None:
    """Write the whole model in its own layout, whatever it is sharded over; every rank must call this."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))


class AgreeingModel:
    """Wraps a sharded model so that every rank gets rank 0's logits and decodes the same.

    What is decoded decides how many forward passes follow: ranks that differed in a last bit would wait for each other
    forever.
    """

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def __call__(self, *args, **kwargs):
        out = self._model(*args, **kwargs)
        out.logits = out.logits.contiguous()
        torch.distributed.broadcast(out.logits, src=0)
        return out

    def __getattr__(self, name: str):
        return getattr(self._model, name)
