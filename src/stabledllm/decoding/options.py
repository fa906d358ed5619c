"""How completions are decoded. The settings are part of every result."""

from __future__ import annotations

from dataclasses import dataclass

from stabledllm.errors import UserError, did_you_mean

ORDERS = ("confidence", "margin", "entropy", "random")
SCHEDULES = ("even", "dream", "origin")
CACHES = ("none", "prefix", "dual")


@dataclass(frozen=True)
class DecodingOptions:
    """``length`` new tokens in blocks of ``block``, ``steps`` model calls in all.

    Published algorithms by these names (with one block, ``block == length``, for Dream's):

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
    """Which masked positions are decided first: where the chosen token is most probable, leads the second by most,
    where the entropy is least, or at random."""
    schedule: str = "even"
    """``even``: as many tokens every step; ``dream``: ``floor(n (1 - s/t))`` of the n left, t from 1 to 1e-3;
    ``origin``: each of them with probability ``1 - s/t``."""
    temperature: float = 0.0
    """0 is greedy; above it tokens are drawn from ``softmax(logits / temperature)``."""
    top_p: float = 1.0
    """Tokens are chosen among the most probable that hold this share."""
    guidance: float = 0.0
    """Classifier-free: logits are ``(1 + guidance) conditional - guidance unconditional``, the prompt masked in the
    latter; twice the forward rows."""
    threshold: float | None = None
    """Decide every token surer than this at once, besides the schedule's: fewer model calls. Approximate."""
    cache: str = "none"
    """Keys and values kept within a block: ``prefix``, of all before it; ``dual``, of all around it (Fast-dLLM,
    arXiv:2505.22618). They are computed anew at each block's start. Approximate, but for models trained in blocks,
    where no token sees a later block and ``prefix`` is exact."""
    seed: int = 0
    """Of the tokens and orders drawn at random; a row's draws depend on its place among the prompts, not on batches."""

    def __post_init__(self) -> None:
        if min(self.length, self.steps, self.block) < 1:
            raise UserError("decoding: length, steps and block must be at least 1.")
        if self.length % self.block:
            raise UserError(f"decoding: block {self.block} does not divide length {self.length}.")
        if self.steps % (self.length // self.block):
            raise UserError(f"decoding: steps {self.steps} do not divide over {self.length // self.block} blocks.")
        for name, known in (("order", ORDERS), ("schedule", SCHEDULES), ("cache", CACHES)):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"decoding.{name}: unknown '{value}'{did_you_mean(value, known)}.")
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
        """Whether it is a published algorithm as published, not a faster approximation, whatever the model."""
        return self.exact_for(None)

    def exact_for(self, block_size: int | None) -> bool:
        """The same for a model trained in blocks of ``block_size``, None for one that was not."""
        return self.threshold is None and (self.cache == "none" or block_size is not None)
