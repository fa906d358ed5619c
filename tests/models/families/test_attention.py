"""Flash attention takes the bounds of segments instead of a mask: a plain stand-in for its kernel must agree."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import AttentionInterface

from tests.models.families.cases import CASES, load, random_ids


def plain_varlen(module, q, k, v, attention_mask, scaling, cu_seq_lens_q=None, max_length_q=None, **kwargs):
    """What flash attention computes: the batch as one flat sequence, cut at the bounds; (N, H, L, E) in."""
    assert attention_mask is None
    assert module.is_causal is False
    rows, heads, length, size = q.shape
    k, v = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (k, v))
    flat = [x.transpose(1, 2).reshape(rows * length, heads, size) for x in (q, k, v)]
    bounds = [i * length for i in range(rows + 1)] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    out = torch.empty_like(flat[0])
    for start, stop in pairwise(bounds):
        assert max_length_q is None or stop - start <= max_length_q
        a, b, c = (x[start:stop].transpose(0, 1) for x in flat)
        out[start:stop] = ((a @ b.transpose(1, 2) * scaling).softmax(-1) @ c).transpose(0, 1)
    return out.view(rows, length, heads, size), None


AttentionInterface.register("flash_plain", plain_varlen)


@pytest.mark.parametrize("name", ["llada-grouped", "dream"])
@torch.no_grad()
def test_segments_and_padding_reach_the_flash_kernel(tmp_path, name):
    model = load(CASES[name].checkpoint(tmp_path, std=0.2)).double()
    ids, real = random_ids(3, 12), torch.ones(3, 12, dtype=torch.bool)
    real[1, 7:] = False
    segment = torch.tensor([[1] * 5 + [2] * 7, [1] * 3 + [2] * 9, [1] * 12])
    cases = [{}, {"attention_mask": real}, {"segment_ids": segment}, {"attention_mask": real, "segment_ids": segment}]
    expected = [model(ids, **arguments).logits for arguments in cases]
    model.config._attn_implementation = "flash_plain"
    for arguments, logits in zip(cases, expected, strict=True):
        shown = arguments.get("attention_mask", torch.ones_like(real))
        torch.testing.assert_close(model(ids, **arguments).logits[shown], logits[shown], rtol=1e-6, atol=1e-8)
