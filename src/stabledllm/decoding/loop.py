"""Decoding of masked diffusion models in semi-autoregressive blocks (LLaDA, arXiv:2502.09992; Dream, arXiv:2508.15487).

Legend: B rows, L positions, S masked positions of the current block, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.decoding.autoregressive import continue_prompts
from stabledllm.decoding.choice import choose
from stabledllm.decoding.options import DecodingOptions
from stabledllm.decoding.schedules import counts, nothing
from stabledllm.errors import UserError
from stabledllm.models.key_value_cache import KeyValueCache
from stabledllm.models.output import is_autoregressive
from stabledllm.noise.streams import Key, Stream


@dataclass
class DecodingStats:
    """What decoding took, added up over calls of :func:`generate`."""

    model_calls: int = 0
    forward_rows: int = 0
    """Rows that went through the model, with those of guidance."""
    forward_positions: int = 0
    """Positions of these rows that went through it, with padding: all without a cache."""
    logit_positions: int = 0
    """Positions at which logits were computed."""
    tokens: int = 0
    """Tokens of the completions, without end tokens and what would stand behind them."""
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict:
        """JSON form."""
        return {**self.__dict__, "tokens_per_second": self.tokens_per_second}


@torch.no_grad()
def generate(
    model,
    prompts: Sequence[Sequence[int]],
    options: DecodingOptions,
    *,
    mask_id: int | None,
    eos_id: int,
    pad_id: int,
    first: int = 0,
    stats: DecodingStats | None = None,
) -> list[list[int]]:
    """Completions, each cut before its end token; the same for any batch composition.

    Prompts of unequal length are padded on the right *behind* the generated region's place, so every
    row keeps its own positions 0, 1, 2, ...: padding moves no position. A row in which an end token has been
    decided with everything before it is finished and leaves the batch: what would follow is cut off anyway.
    Logits are computed only at the masked positions of the current block. A model trained in blocks
    (``config.block_size``) sees the prompt and the blocks up to the current one, as in training. An autoregressive
    model decodes from left to right, see :mod:`~stabledllm.decoding.autoregressive`.
    With ``options.cache`` only the positions that it names go through the model after a block's first call.

    Args:
        first: place of the first prompt among all that are decoded, for what is drawn at random.
        stats: what it took is added here.

    Returns:
        One list of token ids per prompt, at most ``options.length`` long.

    Raises:
        UserError: other blocks than the model was trained with, a cache that the model cannot take, or a prompt that
            holds the mask token.
    """
    began = time.perf_counter()
    stats = stats if stats is not None else DecodingStats()
    if is_autoregressive(model):
        out = continue_prompts(model, prompts, options, eos_id=eos_id, pad_id=pad_id, first=first, stats=stats)
        return _counted(out, stats, began)
    _refuse_masked(prompts, mask_id, first)
    state = _State(model, prompts, options, mask_id, pad_id, first, stats)
    steps = options.steps // options.blocks
    for block in range(options.blocks):
        for step in range(steps):
            state.step(block, step)
            state.retire(eos_id)
    out = [_cut(state.done[i, n : n + options.length].tolist(), eos_id) for i, n in enumerate(len(p) for p in prompts)]
    return _counted(out, stats, began)


def _refuse_masked(prompts: Sequence[Sequence[int]], mask_id: int | None, first: int) -> None:
    """Refuse a prompt in which a token looks like a position to fill."""
    for place, prompt in enumerate(prompts, first + 1):
        if mask_id in prompt:
            raise UserError(f"prompt {place}: expected no mask token, found its id {mask_id}.")


def _counted(out: list[list[int]], stats: DecodingStats, began: float) -> list[list[int]]:
    stats.tokens += sum(len(ids) for ids in out)
    stats.seconds += time.perf_counter() - began
    return out


class _State:
    """The rows that are still being decoded, and all of them as far as they are decided (``done``)."""

    def __init__(self, model, prompts, options: DecodingOptions, mask_id: int, pad_id: int, first: int, stats):
        device = next(model.parameters()).device
        self.model, self.options, self.mask_id, self.stats = model, options, mask_id, stats
        self.in_blocks = getattr(model.config, "block_size", None)
        if self.in_blocks not in (None, options.block):
            raise UserError(
                f"decoding: expected block {self.in_blocks}, with which the model was trained, found {options.block}."
            )
        if self.in_blocks and options.cache == "dual":
            raise UserError(
                "decoding.cache: expected 'prefix' for a model trained in blocks, where nothing sees a later block, "
                "found 'dual'."
            )
        self.shift = int(getattr(model.config, "shift_logits", False))
        self.cache = None if options.cache == "none" else KeyValueCache()
        self.cached_block = -1
        starts = torch.tensor([len(p) for p in prompts], device=device)
        width = int(starts.max()) + options.length
        self.done = torch.full((len(prompts), width), pad_id, device=device)
        for row, prompt in enumerate(prompts):
            self.done[row, : len(prompt)] = torch.tensor(prompt, device=device)
            self.done[row, len(prompt) : len(prompt) + options.length] = mask_id
        self.live = torch.arange(len(prompts), device=device)
        self.ids = self.done.clone()
        self.number = first + self.live
        self.place = torch.arange(width, device=device)[None] - starts[:, None]
        """Index of each position in the completion; negative in the prompt, shape (B, L)."""

    def step(self, block: int, step: int) -> None:
        """Decide this step's share of the block in every live row."""
        options = self.options
        start = block * options.block
        masked = (self.ids == self.mask_id) & (self.place >= start) & (self.place < start + options.block)
        left = masked.sum(1)
        if nothing(options, step, left):
            return
        key = Key(options.seed, block * (options.steps // options.blocks) + step)
        score = torch.full(self.ids.shape, -torch.inf, dtype=torch.float64, device=self.ids.device)
        order = torch.empty(0)
        if options.order == "random":
            order = key.token_uniforms(Stream.DECODING_ORDER, self.number, self.place.clamp(min=0))
        number = counts(options, step, left, order, masked)
        drawn = torch.empty(0, device=self.ids.device)
        if options.temperature > 0:
            drawn = key.token_uniforms(Stream.DECODING, self.number, self.place.clamp(min=0))[masked]
        token, sure = choose(self._logits(masked, block), options, drawn)
        # origin decides the positions with the smallest uniforms, random order likewise.
        score[masked] = -order[masked] if options.order == "random" else sure.double()
        if options.threshold is not None:
            number = torch.maximum(number, (score > options.threshold).sum(1))
        best = score.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(best).scatter_(1, best, torch.arange(best.shape[1], device=best.device).expand_as(best))
        decided = masked & (rank < number[:, None])
        self.ids[decided] = token[decided[masked]]

    def _logits(self, masked: Tensor, block: int) -> Tensor:
        """Guided logits at the masked positions, the mask token's at -inf, shape (S, V)."""
        ids, attention, selected = self.ids, self.place < self.options.length, masked
        form = {}
        if self.in_blocks:  # blocks still to come are seen by nobody before them: they need not be taken away
            form["block_ids"] = (self.place // self.options.block + 1).clamp(min=0).masked_fill(~attention, -1)
        if self.cache is not None:
            form["cache"], self.cache.positions = self.cache, self._computed(block)
        if self.options.guidance > 0:
            unconditional = ids.masked_fill(self.place < 0, self.mask_id)
            ids, attention, selected = (
                torch.cat(pair) for pair in ((ids, unconditional), (attention, attention), (masked, masked))
            )
            if "block_ids" in form:
                form["block_ids"] = form["block_ids"].repeat(2, 1)
            if self.cache is not None and self.cache.positions is not None:
                self.cache.positions = self.cache.positions.repeat(2, 1)
        logits = self.model(ids, attention, selected=selected, **form).logits
        self.stats.model_calls += 1
        self.stats.forward_rows += len(ids)
        whole = self.cache is None or self.cache.positions is None
        self.stats.forward_positions += ids.numel() if whole else self.cache.positions.numel()
        self.stats.logit_positions += len(logits)
        if self.options.guidance > 0:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + (1 + self.options.guidance) * (conditional - unconditional)
        logits[:, self.mask_id] = -torch.inf
        return logits

    def _computed(self, block: int) -> Tensor | None:
        """The positions that go through the model, (B, Q), in every row as many; None for all."""
        start, end = block * self.options.block, (block + 1) * self.options.block
        first, self.cached_block = block != self.cached_block, block
        if first:
            if not self.in_blocks or block == 0:
                return None
            # What is kept of the block before is of its masked state; of the blocks before that nothing has changed.
            start -= self.options.block
        else:
            start -= self.shift  # the position before a token predicts it
            if self.options.cache == "prefix" and not self.in_blocks:
                end = self.options.length
        place = torch.arange(start, end, device=self.ids.device)
        # An empty prompt's first token is predicted at its own place.
        return (place[None] - self.place[:, :1]).clamp(min=0)

    def retire(self, eos_id: int) -> None:
        """Take out the rows in which an end token is decided with everything before it."""
        if not len(self.live):
            return
        answer = self.place >= 0
        here = torch.arange(self.ids.shape[1], device=self.ids.device)
        beyond = self.ids.shape[1]
        end = torch.where((self.ids == eos_id) & answer, here, beyond).amin(1)
        undecided = torch.where((self.ids == self.mask_id) & answer, here, beyond).amin(1)
        # Padding may be the end token too; it stands behind the answer, where nothing is left to decide.
        finished = end < undecided
        self.done[self.live, : self.ids.shape[1]] = self.ids
        if bool(finished.any()):
            kept = ~finished
            # The longest row may have left: nothing is computed for columns that only it had.
            width = int((self.place[kept] < self.options.length).any(0).sum())
            self.live, self.number = self.live[kept], self.number[kept]
            if self.cache is not None:
                self.cache.keep(kept.repeat(2) if self.options.guidance > 0 else kept, width)
            self.ids, self.place = self.ids[kept, :width], self.place[kept, :width]


def _cut(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
