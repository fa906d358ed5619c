"""Which parameters a gradient is taken of."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from stabledllm.errors import UserError, did_you_mean


def chosen_parameters(model: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, in the model's order; with ``patterns`` those that one of them matches.

    Args:
        patterns: as in a shell, over full names: ``head.*``, ``blocks.3.*``.

    Raises:
        UserError: a pattern that matches no trainable parameter, or a model without any.
    """
    known = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not known:
        raise UserError("gradient: expected a model with trainable parameters, found none.")
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(f"gradient: no trainable parameter matches '{pattern}'{did_you_mean(pattern, known)}.")
    if not patterns:
        return known
    return {name: p for name, p in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
