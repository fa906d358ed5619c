"""The forward over both copies against the definition: block after block, each on its clean past, without any mask."""

import pytest
import torch
import torch.nn.functional as F

from stabledllm.models.attention_masks import block_causal_mask
from stabledllm.models.families.two_copies import TwoCopies
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig, rotate

MASK = 50


@pytest.fixture
def model():
    torch.manual_seed(1)
    config = TinyMDMConfig(
        vocab_size=52,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        mask_token_id=MASK,
        initializer_range=0.3,
    )
    return TinyMDM(config).double()


def batch():
    """Two rows, the second padded: block ids, clean ids, mask."""
    blocks = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2, 3], [0, 0, 1, 1, 1, 2, 2, -1, -1, -1]])
    ids = torch.randint(0, 50, blocks.shape, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(blocks.shape, dtype=torch.bool)
    mask[0, [3, 5, 6, 7, 8, 9]] = True
    mask[1, [2, 5]] = True
    return blocks, ids, mask


def one_block(model, ids, start, past):
    """Hidden states of one block that sees the past and itself, and the past with it added; plain softmax."""
    x, new = model.embed(ids), []
    for layer, (keys, values) in zip(model.blocks, past, strict=True):
        length, heads = len(ids), layer.heads
        width = x.shape[1] // heads
        q, k, v = (
            p.view(length, heads, width).transpose(0, 1) for p in layer.qkv_proj(layer.attn_norm(x)).chunk(3, dim=1)
        )
        inverse = model.config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(start, start + length)[:, None] * torch.cat((inverse, inverse))
        q, k = rotate(q, angle.cos(), angle.sin()), rotate(k, angle.cos(), angle.sin())
        keys, values = torch.cat((keys, k), dim=1), torch.cat((values, v), dim=1)
        new.append((keys, values))
        weights = (q @ keys.transpose(1, 2) / width**0.5).softmax(-1)
        x = x + layer.attn_out((weights @ values).transpose(0, 1).reshape(length, -1))
        gate, up = layer.gate_up_proj(layer.ff_norm(x)).chunk(2, dim=-1)
        x = x + layer.ff_out(F.silu(gate) * up)
    return model.norm(x), new


def plain_nll(model, blocks, ids, mask):
    """BD3-LM's definition, row by row and block by block."""
    out = []
    for row in range(len(ids)):
        heads = model.config.num_attention_heads
        empty = torch.zeros(heads, 0, model.config.hidden_size // heads, dtype=torch.float64)
        past = [(empty, empty)] * len(model.blocks)
        for b in range(int(blocks[row].max()) + 1):
            here = blocks[row] == b
            start = int(here.nonzero()[0, 0])
            clean, masked = ids[row, here], mask[row, here]
            hidden, _ = one_block(model, torch.where(masked, MASK, clean), start, past)
            logits = model.head(hidden[masked])
            out.append(F.cross_entropy(logits, clean[masked], reduction="none"))
            _, past = one_block(model, clean, start, past)
    return torch.cat(out)


@pytest.mark.parametrize("packed", [False, True])
def test_all_blocks_at_once_are_the_blocks_one_by_one(model, packed):
    blocks, ids, mask = batch()
    noisy = torch.where(mask, MASK, ids)
    weight = torch.rand(int(mask.sum()), dtype=torch.float64)
    found = model(noisy, blocks >= 0, selected=mask, targets=ids, block_ids=blocks, packed=packed).nll
    (found * weight).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = plain_nll(model, blocks, ids, mask)
    (expected * weight).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for gradient, (name, parameter) in zip(gradients, model.named_parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-10, msg=name)


def test_a_row_that_is_its_own_past_gives_the_block_in_work_the_same_logits(model):
    """Decoding: the finished blocks clean, the block in work masked, those to come whatever they are."""
    blocks, ids, mask = batch()
    together = model(torch.where(mask, MASK, ids), None, selected=mask, targets=ids, block_ids=blocks).nll
    own = torch.cat([blocks[row][mask[row]] for row in range(len(ids))])
    for b in (1, 2):
        work = mask & (blocks == b)
        decoded = torch.where(work | (blocks > b), MASK, ids)
        logits = model(decoded, None, selected=work, block_ids=blocks).logits
        nll = F.cross_entropy(logits, ids[work], reduction="none")
        torch.testing.assert_close(nll, together[own == b], rtol=1e-10, atol=1e-10)


def test_no_block_sees_its_own_answers_or_later_ones(model):
    blocks, ids, mask = batch()
    noisy, changed = torch.where(mask, MASK, ids), ids.clone()
    changed[0, blocks[0] >= 2] = (changed[0, blocks[0] >= 2] + 1) % 50
    own = torch.cat([blocks[row][mask[row]] for row in range(len(ids))])
    first = torch.arange(int(mask.sum())) < int(mask[0].sum())
    logits = [model.head(model.copies_hidden_states(noisy, clean, blocks, None)[mask]) for clean in (ids, changed)]
    same = (logits[0] == logits[1]).all(1)
    assert same[~first | (own <= 2)].all()
    assert not same[first & (own == 3)].any()


def test_masks_written_out():
    ids = torch.tensor([[0, 1, 1, -1]])
    causal = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert block_causal_mask(ids)[0, 0].long().tolist() == causal
    copies = TwoCopies.of(torch.ones(1, 4, dtype=torch.bool), ids).mask()[0, 0].long().tolist()
    assert copies == [
        [1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        *([0, 0, 0, *row] for row in causal),
    ]
