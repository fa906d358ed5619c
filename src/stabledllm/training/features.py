"""What of transformers' features a run can have, known before it starts."""

from __future__ import annotations

from torch import nn
from transformers import TrainingArguments

from stabledllm.errors import UserError


def refuse_checkpointing(model: nn.Module | type, name: str, arguments: TrainingArguments) -> None:
    """Not every model of transformers, nor any with code of its own, can compute its activations a second time.

    Args:
        model: the model or its class.

    Raises:
        UserError: gradient checkpointing of a model that lacks it.
    """
    if _asked(arguments) and not getattr(model, "supports_gradient_checkpointing", True):
        raise UserError(
            f"key 'trainer.gradient_checkpointing': expected a model that supports it, found '{name}', which does not."
        )


def _asked(arguments: TrainingArguments) -> bool:
    names = ("gradient_checkpointing", "activation_checkpointing")
    return any(getattr(arguments, name, None) for name in names)
