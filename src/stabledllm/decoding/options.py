"""The options of decoding completions. They are part of every result."""

from __future__ import annotations

from dataclasses import dataclass

from stabledllm.config.decoding_fit import refuse_unfit
from stabledllm.errors import UserError, did_you_mean

ORDERS = ("confidence", "margin", "entropy", "random")
SCHEDULES = ("even", "dream", "origin")
CACHES = ("none", "prefix", "dual")


@dataclass(frozen=True)
class DecodingOptions:
    """The options of decoding ``length`` new tokens in blocks of ``block`` with ``steps`` model calls in all.

    Published algorithms in terms of these options (Dream's with one block, ``block == length``):

    ========================  ===================================================
    LLaDA, low_confidence     order ``confidence``, schedule ``even``
    LLaDA, random             order ``random``, schedule ``even``
    Dream, origin             schedule ``origin`` (every masked token by itself, order ``random``)
    Dream, maskgit_plus       order ``confidence``, schedule ``dream``
    Dream, topk_margin        order ``margin``, schedule ``dream``
    Dream, entropy            order ``entropy``, schedule ``dream``
    ========================  ===================================================

    Raises:
        UserError: unless ``block`` divides ``length``, the blocks share the steps evenly, and each value is in range.
    """

    length: int = 128
    steps: int = 128
    block: int = 32
    order: str = "confidence"
    """Which masked positions are decided first: those whose chosen token is most probable, or leads the second by most,
    those of least entropy, or random ones."""
    schedule: str = "even"
    """``even``: equally many tokens in every step; ``dream``: ``floor(n (1 - s/t))`` of the n left, t from 1 to 1e-3;
    ``origin``: each of them with probability ``1 - s/t``."""
    temperature: float = 0.0
    """0 is greedy; above it tokens are drawn from ``softmax(logits / temperature)``."""
    top_p: float = 1.0
    """Tokens are chosen among the most probable ones that together reach this probability."""
    guidance: float = 0.0
    """Classifier-free: logits are ``(1 + guidance) conditional - guidance unconditional``, the prompt masked in the
    latter; twice the forward rows."""
    threshold: float | None = None
    """Also decide every token with more than this probability at once, for fewer model calls. Approximate."""
    cache: str = "none"
    """Keys and values cached within a block: ``prefix``, of all before it; ``dual``, of all around it (Fast-dLLM,
    arXiv:2505.22618). They are computed again at each block's start. Approximate, except for models trained in blocks,
    where no token attends to a later block and ``prefix`` is exact."""
    seed: int = 0
    """Seed of the random tokens and orders; a row's draws depend on its place among the prompts, not on batches."""

    def __post_init__(self) -> None:
        refuse_unfit(self.length, self.steps, self.block)
        for name, choices in (("order", ORDERS), ("schedule", SCHEDULES), ("cache", CACHES)):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"decoding.{name}: unknown '{value}'{did_you_mean(value, choices)}.")
        if self.schedule == "origin" and self.order != "random":
            raise UserError(f"decoding.order: schedule 'origin' takes order 'random', found '{self.order}'.")
        if self.temperature < 0 or self.guidance < 0:
            raise UserError("decoding: expected temperature and guidance of at least 0.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p: expected a share above 0 and at most 1, found {self.top_p:g}.")
        if self.threshold is not None and not (0 < self.threshold <= 1 and self.order == "confidence"):
            raise UserError(
                f"decoding.threshold: expected a probability above 0 with order 'confidence', found {self.threshold:g} "
                f"with order '{self.order}'."
            )

    @property
    def blocks(self) -> int:
        return self.length // self.block

    @property
    def exact(self) -> bool:
        """Whether this is a published algorithm, not a faster approximation, whatever the model."""
        return self.exact_for(None)

    def exact_for(self, block_size: int | None) -> bool:
        """The same as :attr:`exact` for a model trained in blocks of ``block_size``; None if it was not."""
        return self.threshold is None and (self.cache == "none" or block_size is not None)
