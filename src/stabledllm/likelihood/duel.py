"""DUEL: the exact log-likelihood of responses under a decoder that chooses positions without looking at what it draws.

The decoder is run with the response's own tokens put in wherever it decides a token; the log-probabilities that it had
for them add up to the log-likelihood, with one forward a step. Source: arXiv:2603.01367.

Legend: B rows, L positions, N decided tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stabledllm.config.likelihoods import check_duel
from stabledllm.data.rows import TokenRow
from stabledllm.data.token_rows import refuse_masked_rows
from stabledllm.decoding import DecodingOptions, DecodingStats, refuse_unsuited
from stabledllm.decoding.blocks import BlockState
from stabledllm.decoding.state import State
from stabledllm.errors import UserError
from stabledllm.models.kind import is_autoregressive
from stabledllm.runtime.finite import require_finite

_NO_TOKEN = -1


@torch.no_grad()
def duel(
    model,
    rows: Sequence[TokenRow],
    options: DecodingOptions,
    *,
    mask_id: int,
    pad_id: int,
    ends: Sequence[int] = (),
    stats: DecodingStats | None = None,
) -> Tensor:
    """The exact log-likelihood of each row's response in nats, float64, shape (B,); the same in any batch, where no
    positions are exactly as sure as each other (a row without a prompt begins so in models of relative positions).

    The sampler that it belongs to decides the positions that ``options`` decide, with the same blocks, cache, guidance,
    threshold and tokens a step, and draws the tokens of a step independently from what the model says of them: the
    probabilities of all responses of one length add up to 1. At temperature 0 the order is that of greedy decoding and
    tokens are drawn at temperature 1; above 0 both are as in decoding. The mask token is never drawn. The response's
    length is given, as in every other likelihood here: it is decoded on as many masks as it has tokens, in blocks of
    ``options.block`` of which the last may be shorter, so that ``options.length`` has no effect.

    Args:
        ends: the tokens that end a sequence and a turn, for ``confidence_eos_eot_inf``.
        stats: the number of forwards is added here.

    Raises:
        UserError: a decoder that has no exact likelihood, or does not fit the model; an autoregressive model; a row
            that has no response, holds the mask token or has given tokens in or behind its response.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2)).eval()
    >>> rows, options = [TokenRow([1, 2, 3, 4], prompt_length=1)], DecodingOptions(length=2, steps=2, block=2)
    >>> duel(model, rows, options, mask_id=256, pad_id=257).shape
    torch.Size([1])
    """
    check_duel(options)
    check_model(model, options)
    _refuse_rows(rows, mask_id)
    longest = max(row.response_length for row in rows)
    blocks, steps = -(-longest // options.block), options.steps // options.blocks
    options = replace(options, length=blocks * options.block, steps=blocks * steps)
    kind = _ForcedBlocks if getattr(model.config, "block_size", None) else _Forced
    state = kind(model, rows, options, mask_id, pad_id, stats if stats is not None else DecodingStats(), ends)
    state.run(_NO_TOKEN)
    assert not len(state.live), "every token of every response is decided by the last step"
    require_finite(state.value, f"duel: log-likelihoods of {type(model).__name__}")
    return state.value.cpu()


def check_model(model, options: DecodingOptions) -> None:
    """Refuse a model that has no exact likelihood under a decoder that has one.

    Raises:
        UserError: an autoregressive model, one that the options do not fit, or one of which a block's first token is
            never drawn at a temperature at which the others are.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> check_model(TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16)), DecodingOptions(first_token="in_turn"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: decoding.first_token: ...
    """
    if is_autoregressive(model):
        raise UserError("likelihood 'duel': expected a masked diffusion model, found an autoregressive one.")
    refuse_unsuited(model, options)
    ahead = getattr(model.config, "block_size", None) and getattr(model.config, "shift_logits", False)
    if ahead and options.first_token != "in_turn" and options.temperature > 0:
        raise UserError(
            f"likelihood 'duel': expected decoding.first_token=in_turn, or temperature 0, for a model whose decoding "
            f"begins each block with its most probable token, found temperature {options.temperature:g}."
        )


class _Forced(State):
    """Rows whose decided tokens are those of their responses, with what the decoder gives them (``value``, nats)."""

    def __init__(self, model, rows: Sequence[TokenRow], options: DecodingOptions, mask_id, pad_id, stats, ends):
        device = next(model.parameters()).device
        self._sizes = torch.tensor([[row.response_length] for row in rows], device=device)
        self.live = torch.arange(len(rows), device=device)
        prompts = [row.input_ids[: row.prompt_length] for row in rows]
        super().__init__(model, prompts, options, mask_id, pad_id, 0, stats, ends)
        self.value = torch.zeros(len(rows), dtype=torch.float64, device=device)
        self._truth = self.ids.clone()
        for i, row in enumerate(rows):
            self._truth[i, : len(row)] = torch.tensor(row.input_ids, device=device)
        self._blocks_of_all = int((-(-(self._sizes + self.lead) // options.block)).max())

    @property
    def blocks(self) -> int:
        return self._blocks_of_all

    @property
    def extent(self) -> Tensor:
        return self._sizes[self.live]

    def reveal(self, where: Tensor, token: Tensor, logits: Tensor) -> None:
        truth = self._truth[self.live, : where.shape[1]][where]
        scaled = logits / self.options.temperature if self.options.temperature > 0 else logits
        own = scaled.log_softmax(-1).gather(1, truth[:, None])[:, 0]
        self.value.index_add_(0, self.live[where.nonzero()[:, 0]], own.double())
        self.ids[where] = truth


class _ForcedBlocks(_Forced, BlockState):
    """The same for a model that is trained in blocks."""


def _refuse_rows(rows: Sequence[TokenRow], mask_id: int) -> None:
    refuse_masked_rows(rows, mask_id)
    for number, row in enumerate(rows):
        if row.tail or row.given or row.hidden or not row.response_length:
            raise UserError(
                f"{row.origin or f'row {number}'}: expected for 'duel' an answer that ends its row, with all of its "
                f"tokens to be decided, found one with given tokens in or behind it, or none."
            )
