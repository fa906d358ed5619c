"""The rows that a masked diffusion model is decoding, and one step of deciding tokens.

Legend: B rows, L positions, Q positions that are computed, S masked positions of the current block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabledllm.decoding.choice import choose
from stabledllm.decoding.options import DecodingOptions
from stabledllm.decoding.schedules import counts, decides_nothing
from stabledllm.models.key_value_cache import KeyValueCache
from stabledllm.noise.streams import Key, Stream


class State:
    """The rows that are still being decoded, and all rows as far as they are decided (``done``)."""

    def __init__(
        self, model, prompts, options: DecodingOptions, mask_id: int, pad_id: int, first: int, stats,
        ends: Sequence[int],
    ):  # fmt: skip
        device = next(model.parameters()).device
        self.model, self.options, self.mask_id, self.stats = model, options, mask_id, stats
        self.banned = [mask_id, *(ends[:1] if options.logits_eos_inf else ())]
        self.last = list(ends) if options.confidence_eos_eot_inf else []
        self.shift = int(getattr(model.config, "shift_logits", False))
        self.cache = None if options.cache == "none" else KeyValueCache()
        self.cached_block = -1
        starts = torch.tensor([len(p) for p in prompts], device=device)
        # Space for the tokens that fill up a last block.
        place = torch.arange(int(starts.max()) + options.length + options.block, device=device)[None] - starts[:, None]
        self.place = place
        """Index of each position in the completion; negative in the prompt, shape (B, L)."""
        inside = place < self.extent
        self.place = place[:, : int(inside.any(0).sum())]
        self.done = torch.full(self.place.shape, pad_id, device=device)
        self.done[inside[:, : self.done.shape[1]]] = mask_id
        for row, prompt in enumerate(prompts):
            self.done[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self.live = torch.arange(len(prompts), device=device)
        self.ids = self.done.clone()
        self.number = first + self.live

    def run(self, end: int) -> None:
        """Decide every position, block after block; a row whose decided tokens hold ``end`` leaves after a step."""
        for block in range(self.blocks):
            if self.begin(block):
                self.retire(end)
            for step in range(self.options.steps // self.options.blocks):
                self.step(block, step)
                self.retire(end)

    def begin(self, block: int) -> bool:
        """Decide what comes before a block's first step; whether anything was decided."""
        return False

    def step(self, block: int, step: int) -> None:
        """Decide this step's share of the block in every live row."""
        options = self.options
        part, part_step = divmod(step, options.part_steps)
        masked = (self.ids == self.mask_id) & self.within(block, part)
        left = masked.sum(1)
        if decides_nothing(options, part_step, left):
            return
        key = Key(options.seed, block * (options.steps // options.blocks) + step)
        score = torch.full(self.ids.shape, -torch.inf, dtype=torch.float64, device=self.ids.device)
        order = torch.empty(0)
        if options.order == "random":
            order = key.token_uniforms(Stream.DECODING_ORDER, self.number, self.place.clamp(min=0))
        number = counts(options, part_step, left, order, masked)
        drawn = torch.empty(0, device=self.ids.device)
        if options.temperature > 0:
            drawn = key.token_uniforms(Stream.DECODING, self.number, self.place.clamp(min=0))[masked]
        logits = self._logits(masked, block, self._computed(block))
        token, sure = choose(logits, options, drawn, self.last)
        # The smallest uniforms are decided first, in random order as by schedule origin.
        first = {"random": order, "sequential": self.place}.get(options.order)
        score[masked] = sure.double() if first is None else -first[masked].double()
        if options.threshold is not None:
            number = torch.maximum(number, (score > options.threshold).sum(1))
        ordered, best = score.sort(dim=1, descending=True, stable=True)
        if options.entropy_bound is not None:
            number = torch.maximum(number, ((-ordered).cumsum(1) < options.entropy_bound).sum(1))
        rank = torch.empty_like(best).scatter_(1, best, torch.arange(best.shape[1], device=best.device).expand_as(best))
        decided = masked & (rank < number[:, None])
        chosen = decided[masked]
        self.reveal(decided, token[chosen], logits[chosen])

    def reveal(self, where: Tensor, token: Tensor, logits: Tensor) -> None:
        """Write tokens, shape (N,), at N positions, bool, (B, L), of which these were the logits, shape (N, V)."""
        self.ids[where] = token

    def _logits(self, masked: Tensor, block: int, computed: Tensor | None) -> Tensor:
        """Guided logits at the masked positions, those of tokens that are never chosen at -inf, shape (S, V).

        Args:
            computed: with a cache the positions that go through the model, (B, Q), equally many in every row.
        """
        width = self.reach(block)
        ids, place, masked = self.ids[:, :width], self.place[:, :width], masked[:, :width]
        attention, selected = place < self.extent, masked
        form = self.form(place, attention)
        if self.cache is not None:
            self.cache.positions = computed
        if self.options.guidance > 0:
            unconditional = ids.masked_fill(place < 0, self.mask_id)
            ids, attention, selected = (
                torch.cat(pair) for pair in ((ids, unconditional), (attention, attention), (masked, masked))
            )
            form = {name: torch.cat((value, value)) for name, value in form.items()}
            if self.cache is not None and self.cache.positions is not None:
                self.cache.positions = self.cache.positions.repeat(2, 1)
        if self.cache is not None:
            form["cache"] = self.cache
        logits = self.model(ids, attention, selected=selected, **form).logits
        self.stats.model_calls += 1
        self.stats.forward_rows += len(ids)
        whole = self.cache is None or self.cache.positions is None
        self.stats.forward_positions += ids.numel() if whole else self.cache.positions.numel()
        self.stats.logit_positions += len(logits)
        if self.options.guidance > 0:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + (1 + self.options.guidance) * (conditional - unconditional)
        for token in self.banned:
            logits[:, token] = -torch.inf
        return logits

    @property
    def blocks(self) -> int:
        """The number of blocks that the completions lie in."""
        return self.options.blocks

    @property
    def extent(self) -> Tensor | int:
        """The number of tokens that are decoded in each row, shape (B, 1) or one for all."""
        return self.options.length

    @property
    def lead(self) -> Tensor | int:
        """The tokens of each row's prompt that its first block begins with, shape (B, 1), or 0."""
        return 0

    def within(self, block: int, part: int) -> Tensor:
        """Whether each position lies in a part of a block, bool, shape (B, L)."""
        size = self.options.part
        place, start = self.place + self.lead, block * self.options.block + part * size
        return (place >= start) & (place < start + size)

    def reach(self, block: int) -> int:
        """The number of first columns that the model needs for a block."""
        return self.ids.shape[1]

    def form(self, place: Tensor, attention: Tensor) -> dict[str, Tensor]:
        """Further keyword arguments of the model besides the rows and their attention mask, each (B, L)."""
        return {}

    def _computed(self, block: int) -> Tensor | None:
        """The positions that a step's call computes, (B, Q), equally many in every row; None for all."""
        if self.cache is None:
            return None
        first, self.cached_block = block != self.cached_block, block
        span = self.first_span(block) if first else self.later_span(block)
        return None if span is None else self._columns(block, span)

    def _columns(self, block: int, span: tuple[int, int]) -> Tensor:
        """The columns of the places from start to end, counted from the start of each row's first block, (B, Q)."""
        place = torch.arange(*span, device=self.ids.device)
        # An empty prompt's first token is predicted at its own place; a last block may be shorter than the others.
        return (place[None] - self.lead - self.place[:, :1]).clamp(0, self.reach(block) - 1)

    def first_span(self, block: int) -> tuple[int, int] | None:
        """The places, from start to end, that a block's first call computes; None for all."""
        return None

    def later_span(self, block: int) -> tuple[int, int]:
        """The places, from start to end, that a block's later calls compute."""
        # The position before a token may predict it.
        start = block * self.options.block - self.shift
        return start, self.options.length if self.options.cache == "prefix" else (block + 1) * self.options.block

    def retire(self, eos_id: int) -> None:
        """Remove the rows in which all tokens are decided, or an end token and everything before it."""
        if not len(self.live):
            return
        answer = (self.place >= 0) & (self.place < self.options.length)
        position = torch.arange(self.ids.shape[1], device=self.ids.device)
        beyond = self.ids.shape[1]
        end = torch.where((self.ids == eos_id) & answer, position, beyond).amin(1)
        undecided = torch.where((self.ids == self.mask_id) & answer, position, beyond).amin(1)
        finished = (end < undecided) | (undecided == beyond)
        self.done[self.live, : self.ids.shape[1]] = self.ids
        if bool(finished.any()):
            unfinished = ~finished
            # The longest row may have left; columns that only it had are dropped.
            width = int((self.place < self.extent)[unfinished].any(0).sum())
            self.live, self.number = self.live[unfinished], self.number[unfinished]
            if self.cache is not None:
                self.cache.keep(unfinished.repeat(2) if self.options.guidance > 0 else unfinished, width)
            self.ids, self.place = self.ids[unfinished, :width], self.place[unfinished, :width]
