"""Models with random weights, to pre-train: ``new:tiny``, or ``new:FOLDER`` with a config.json and a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable

from stabledllm.errors import UserError

_PREFIX = "new:"


def is_new(name: str) -> bool:
    """Whether a model's name asks for random weights."""
    return name.startswith(_PREFIX)


def pattern_of(name: str) -> str:
    """The model whose shape and tokenizer a name asks for: the part after ``new:``, or the name itself."""
    return name.removeprefix(_PREFIX)


def with_first_values(create: Callable, seed: int, dtype, what: str):
    """Make a model with its family's random first weights, drawn in float32 from ``seed``, then cast to ``dtype``.

    The caller's random state is left as it was.

    Args:
        what: begins the error message.

    Raises:
        UserError: more weights than this machine's memory holds.
    """
    import torch  # here, as the rest of this file also serves where no framework is loaded

    with torch.device("meta"):
        needed = 4 * sum(parameter.numel() for parameter in create().parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"{what}: expected a new model that fits the {memory / 2**30:,.0f} GiB of memory in float32, found one of "
            f"{needed / 2**30:,.0f} GiB in its config.json."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create().to(dtype)
