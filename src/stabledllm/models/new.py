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
    """The model whose shape and tokenizer a model has: what stands behind ``new:``, or the name itself."""
    return name.removeprefix(_PREFIX)


def with_first_values(create: Callable, seed: int, dtype, what: str):
    """A model whose family draws its own first values, in float32 and from ``seed`` alone, then held in ``dtype``.

    The caller's random state is left as it was.

    Args:
        what: begins the sentence.

    Raises:
        UserError: more weights than this machine's memory holds.
    """
    import torch  # here, as names are also looked at where no framework is loaded

    with torch.device("meta"):
        wanted = 4 * sum(parameter.numel() for parameter in create().parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > there:
        raise UserError(
            f"{what}: expected a new model that fits the {there / 2**30:,.0f} GiB of memory in float32, found one of "
            f"{wanted / 2**30:,.0f} GiB in its config.json."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create().to(dtype)
