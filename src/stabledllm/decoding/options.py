"""The options of decoding completions. They are part of every result."""

from __future__ import annotations

from dataclasses import dataclass

from stabledllm.config.decoding_fit import refuse_unfit
from stabledllm.errors import UserError, did_you_mean

ORDERS = ("confidence", "margin", "entropy", "random", "sequential")
SCHEDULES = ("even", "dream", "origin")
CACHES = ("none", "prefix", "dual")
FIRST_TOKENS = ("ahead", "in_turn")


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

    And of models trained in blocks, with ``steps == length`` where one token a call is the least:

    ==========================  =================================================
    SDAR, low_confidence        ``static``: as LLaDA; ``dynamic``: ``threshold``
    SDAR, sequential            order ``sequential``
    SDAR, entropy_bounded       order ``entropy``, ``entropy_bound``
    LLaDA2                      ``threshold``
    Fast-dLLM v2                ``threshold``, ``sub_block`` 8, ``first_token`` ``ahead``
    ==========================  =================================================

    Raises:
        UserError: unless ``block`` divides ``length``, ``sub_block`` the block, the blocks (or sub-blocks) share the
            steps evenly, and each value is in range.
    """

    length: int = 128
    steps: int = 128
    block: int = 32
    order: str = "confidence"
    """Which masked positions are decided first: those whose chosen token is most probable, or leads the second by most,
    those of least entropy, random ones, or (``sequential``) those on the left."""
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
    entropy_bound: float | None = None
    """Also decide at once the tokens of least entropy, as long as their entropies sum to less than this, in nats
    (SDAR's ``entropy_bounded``). With order ``entropy``. Approximate."""
    sub_block: int | None = None
    """Tokens of a sub-block, which is decided before those on its right are begun while the model sees the whole block
    (Fast-dLLM v2). For models trained in blocks; None: the block is not divided."""
    first_token: str | None = None
    """How a block's first token is decided under shifted logits, where the last token of the finished block before it
    predicts it: ``ahead``, the most probable one, before any other token of the block (Fast-dLLM v2); ``in_turn``, as
    any other. None: as published, ``ahead`` for models in blocks with shifted logits."""
    cache: str = "none"
    """Keys and values cached within a block: ``prefix``, of all before it; ``dual``, of all around it (Fast-dLLM,
    arXiv:2505.22618). They are computed again at each block's start. Approximate, except for models trained in blocks,
    where no token attends to a later block and ``prefix`` is exact."""
    logits_eos_inf: bool = False
    """Never choose the tokenizer's end-of-sequence token (LLaDA, arXiv:2502.09992, appendix B.4); a token of its own
    that ends the turn stays possible."""
    confidence_eos_eot_inf: bool = False
    """Decide the positions whose token ends the sequence or the turn after all others of their block (LLaDA, appendix
    B.4); the others are scored as if there were no such tokens."""
    seed: int = 0
    """Seed of the random tokens and orders; a row's draws depend on its place among the prompts, not on batches."""

    def __post_init__(self) -> None:
        refuse_unfit(self.length, self.steps, self.block, sub_block=self.sub_block)
        named = (("order", ORDERS), ("schedule", SCHEDULES), ("cache", CACHES), ("first_token", FIRST_TOKENS))
        for name, choices in named:
            if (value := getattr(self, name)) is not None and value not in choices:
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
        if self.entropy_bound is not None and not (self.entropy_bound > 0 and self.order == "entropy"):
            raise UserError(
                f"decoding.entropy_bound: expected nats above 0 with order 'entropy', found {self.entropy_bound:g} "
                f"with order '{self.order}'."
            )
        if self.confidence_eos_eot_inf and self.order in ("random", "sequential"):
            raise UserError(
                f"decoding.confidence_eos_eot_inf: expected an order by how sure the model is, such as 'confidence', "
                f"found order '{self.order}', which asks for no such thing."
            )

    @property
    def blocks(self) -> int:
        return self.length // self.block

    @property
    def part(self) -> int:
        """The tokens among which a step chooses: those of a sub-block, or of the block."""
        return self.sub_block or self.block

    @property
    def part_steps(self) -> int:
        """The number of steps in which these are decided."""
        return self.steps * self.part // self.length

    @property
    def parallel(self) -> bool:
        """Whether a step may decide more tokens than the schedule says."""
        return self.threshold is not None or self.entropy_bound is not None

    @property
    def exact(self) -> bool:
        """Whether this is a published algorithm, not a faster approximation, whatever the model."""
        return self.exact_for(None)

    def exact_for(self, block_size: int | None) -> bool:
        """The same as :attr:`exact` for a model trained in blocks of ``block_size``; None if it was not."""
        return not self.parallel and (self.cache == "none" or block_size is not None)
