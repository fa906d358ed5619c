"""The noisy blocks that carry loss beside the clean row: what is kept, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from stabledllm.models.attention_masks import block_diffusion_mask
from stabledllm.models.families.two_copies import TwoCopies
from tests.fakes.block_models import write_fast_dllm, write_sdar
from tests.models.families.cases import load


def test_only_blocks_with_masked_tokens_are_kept():
    """Two rows in blocks of 2; the second is padded."""
    blocks = torch.tensor([[0, 0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 2, -1, -1]])
    masked = torch.zeros(2, 7, dtype=torch.bool)
    masked[0, [3, 6]] = masked[1, 4] = True
    copies = TwoCopies.of(masked, blocks)
    assert copies.noisy_blocks.tolist() == [[1, 1, 3], [2, -1, -1]]
    assert copies.noisy[0].tolist() == [2, 3, 6]
    assert copies.place.tolist() == [[3, 4, 0, 1, 7, 8, 2], [3, 4, 5, 6, 0, 8, 9]]
    row = torch.arange(7).expand(2, -1)
    assert copies.joined(row + 10, row)[0].tolist() == [12, 13, 16, 0, 1, 2, 3, 4, 5, 6]
    mask = copies.mask()[0, 0].long()
    assert mask[:3].tolist() == [
        [1, 1, 0, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 0],
    ]
    assert not mask[3:, :3].any(), "the clean row sees nothing noisy"
    assert copies.mask().any(3).all(), "every query sees something"


def test_with_a_mask_in_every_block_the_attention_is_that_of_both_whole_rows():
    blocks = torch.tensor([[0, 0, 1, 1], [0, 1, 1, -1]])
    copies = TwoCopies.of(torch.ones(2, 4, dtype=torch.bool), blocks)
    whole = block_diffusion_mask(blocks)
    assert torch.equal(copies.mask()[0], whole[0])
    assert torch.equal(copies.mask()[1, :, :3], whole[1, :, :3])


@pytest.mark.parametrize("write", [write_sdar, write_fast_dllm], ids=["sdar", "fast-dllm"])
def test_what_is_left_out_changes_no_cross_entropy_and_no_gradient(tmp_path, write, monkeypatch):
    model = load(write(tmp_path, std=0.3)).double().train()
    clean = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(3, 24, dtype=torch.bool)
    mask[0, [9, 23]] = mask[1, 12:15] = mask[2, 4] = True
    blocks = torch.arange(24).expand(3, -1) // 4
    tokens = []
    model.layers()[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))

    def outputs():
        model.zero_grad()
        nll = model(torch.where(mask, 259, clean), selected=mask, targets=clean, block_ids=blocks).nll
        nll.sum().backward()
        return [nll, *(p.grad.clone() for p in model.parameters())]

    few, of = outputs(), TwoCopies.of
    monkeypatch.setattr(TwoCopies, "of", lambda masked, ids: of(torch.ones_like(masked), ids))
    whole = outputs()
    assert tokens == [8 + 24, 48]
    for found, expected in zip(few, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # Qwen's norms compute in float32
