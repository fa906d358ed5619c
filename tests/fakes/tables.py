"""A tiny model in blocks, and the cross-entropies of its rows' blocks under every mask, as rows of the oracle."""

from __future__ import annotations

import torch

from stabledllm.data.rows import TokenRow
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.blocks import Blocks
from tests.oracle import ToyRow, all_masks

SIZE = 2


def tiny_in_blocks(size: int = SIZE, *, from_start: bool = False, seed: int = 0) -> TinyMDM:
    """A random model in float64 whose predictions depend strongly on what is masked."""
    torch.manual_seed(seed)
    config = TinyMDMConfig(
        vocab_size=12, mask_token_id=0, hidden_size=16, num_attention_heads=2, num_hidden_layers=2,
        intermediate_size=24, block_size=size, initializer_range=0.5,
    )  # fmt: skip
    config.blocks_from_start = from_start
    return TinyMDM(config).double().eval()


@torch.no_grad()
def block_tables(model: TinyMDM, row: TokenRow) -> list[ToyRow]:
    """The oracle's row of each block of a response: all masks of that block, every other block being clean."""
    ids = torch.tensor([row.input_ids])
    response = (torch.arange(len(row)) >= row.prompt_length)[None]
    real = torch.ones_like(response)
    blocks = Blocks.of(model, model.config.block_size)
    block_ids = blocks.ids(response, real)
    tables = []
    for block in block_ids[response].unique().tolist():
        own = (response & (block_ids == block))[0].nonzero()[:, 0]
        table = torch.zeros(2 ** len(own), len(own), 1, dtype=torch.float64)
        for state, masked in enumerate(torch.from_numpy(all_masks(len(own)))):
            selected = torch.zeros_like(response)
            selected[0, own[masked]] = True
            if masked.any():
                noisy = torch.where(selected, model.config.mask_token_id, ids)
                nll = model(noisy, real, selected=selected, targets=ids, block_ids=block_ids).nll
                table[state, masked, 0] = nll.double()
        tables.append(ToyRow(table.numpy()))
    return tables
