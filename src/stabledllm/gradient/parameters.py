"""The choice of the parameters whose gradient is measured."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from stabledllm.errors import UserError, did_you_mean


def chosen_parameters(model: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in the model's order; with ``patterns`` only those that match one of them.

    Args:
        patterns: shell patterns for full names, such as ``head.*`` or ``blocks.3.*``.

    Raises:
        UserError: a pattern that matches no trainable parameter, or a model without any.

    >>> list(chosen_parameters(nn.Linear(2, 1), ["w*"]))
    ['weight']
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UserError("gradient: expected a model with trainable parameters, found none.")
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in trainable):
            raise UserError(f"gradient: no trainable parameter matches '{pattern}'{did_you_mean(pattern, trainable)}.")
    if not patterns:
        return trainable
    return {name: p for name, p in trainable.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
