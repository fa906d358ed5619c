"""Models with random weights, to pre-train: ``new:tiny``, or ``new:FOLDER`` with a config.json and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable

_PREFIX = "new:"


def is_new(name: str) -> bool:
    """Whether a model's name asks for random weights."""
    return name.startswith(_PREFIX)


def pattern_of(name: str) -> str:
    """The model whose shape and tokenizer a model has: what stands behind ``new:``, or the name itself."""
    return name.removeprefix(_PREFIX)


def with_first_values(create: Callable, seed: int, dtype):
    """A model whose family draws its own first values, in float32 and from ``seed`` alone, then held in ``dtype``.

    The caller's random state is left as it was.
    """
    import torch  # here, as names are also looked at where no framework is loaded

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create().to(dtype)
