"""Checks, before a run starts, that its model supports the features of transformers that it asks for."""

from __future__ import annotations

from torch import nn
from transformers import TrainingArguments

from stabledllm.errors import UserError


def refuse_checkpointing(model: nn.Module | type, name: str, arguments: TrainingArguments) -> None:
    """Refuse gradient checkpointing for a model that cannot compute its activations a second time.

    Args:
        model: the model or its class.

    Raises:
        UserError: gradient checkpointing is asked for and the model does not support it.
    """
    if _asked(arguments) and not getattr(model, "supports_gradient_checkpointing", True):
        raise UserError(
            f"key 'trainer.gradient_checkpointing': expected a model that supports it, found '{name}', which does not."
        )


def _asked(arguments: TrainingArguments) -> bool:
    names = ("gradient_checkpointing", "activation_checkpointing")
    return any(getattr(arguments, name, None) for name in names)
