"""Greedy decoding is LLaDA's algorithm, whatever the batch; the reference below is written from its description."""

from functools import cache

import pytest
import torch

from stabledllm.decoding.low_confidence import DecodingOptions, generate, per_step
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import EOS, MASK
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig

PROMPTS = [[258, *range(5 + i, 5 + i + length), 259] for i, length in enumerate((1, 3, 9, 4, 1, 17, 6, 2))]
"""Eight prompts of unequal length, of which the longest is not the first."""


@cache
def model(eos_bias: float = 0.0) -> TinyMDM:
    """A random float64 model, large weights to tell tokens apart; ``eos_bias`` scales up the end token's row."""
    torch.manual_seed(0)
    config = TinyMDMConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, initializer_range=0.3
    )
    tiny = TinyMDM(config).double().eval()
    with torch.no_grad():
        tiny.head.weight[EOS] *= 1 + eos_bias
    return tiny


@torch.no_grad()
def reference(tiny, prompt: list[int], length: int, steps: int, block: int) -> list[int]:
    """LLaDA, Algorithm 5 with semi-autoregressive blocks: batch of one, full logits, no early stop, no padding."""
    x = torch.tensor([prompt + [MASK] * length])
    blocks = length // block
    each, rest = divmod(block, steps // blocks)
    for b in range(blocks):
        low, high = len(prompt) + b * block, len(prompt) + (b + 1) * block
        for step in range(steps // blocks):
            logits = tiny(x).logits[0].clone()
            logits[:, MASK] = -torch.inf
            confidence, token = torch.softmax(logits, -1).max(-1)
            open_places = [i for i in range(low, high) if x[0, i] == MASK]
            surest = sorted(open_places, key=lambda i: -float(confidence[i]))[: each + (step < rest)]
            for i in surest:
                x[0, i] = token[i]
    answer = x[0, len(prompt) :].tolist()
    return answer[: answer.index(EOS)] if EOS in answer else answer


def decode(prompts, options: DecodingOptions, tiny: TinyMDM) -> list[list[int]]:
    return generate(tiny, prompts, options, mask_id=MASK, eos_id=EOS, pad_id=EOS)


@pytest.mark.parametrize("eos_bias", [0.0, 1.0])
@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 16), (16, 16, 4), (16, 8, 8), (12, 5, 12), (12, 6, 4)])
def test_equals_the_reference_in_any_batch(length, steps, block, eos_bias):
    options, tiny = DecodingOptions(length, steps, block), model(eos_bias)
    expected = [reference(tiny, p, length, steps, block) for p in PROMPTS]
    assert [decode([p], options, tiny)[0] for p in PROMPTS] == expected
    assert decode(PROMPTS, options, tiny) == expected
    assert decode(PROMPTS[::-1], options, tiny) == expected[::-1]


def test_the_comparison_is_not_empty():
    """Completions differ from prompt to prompt and depend on the options; some end early, some do not."""
    tiny = model()
    blocks = [decode(PROMPTS, DecodingOptions(16, 16, b), tiny) for b in (16, 4)]
    assert len({tuple(c) for c in blocks[0]}) > 4
    assert blocks[0] != blocks[1]
    lengths = {len(c) for bias in (0.0, 1.0) for c in decode(PROMPTS, DecodingOptions(16, 16, 4), model(bias))}
    assert 16 in lengths
    assert min(lengths) < 16


def test_a_completion_holds_neither_mask_nor_end_token():
    for bias in (0.0, 1.0):
        for completion in decode(PROMPTS, DecodingOptions(12, 6, 4), model(bias)):
            assert not {MASK, EOS} & set(completion)
            assert len(completion) <= 12


@pytest.mark.parametrize(("block", "steps"), [(32, 32), (32, 5), (4, 7), (1, 1), (16, 3)])
def test_a_block_is_revealed_in_full_and_as_evenly_as_can_be(block, steps):
    counts = per_step(block, steps)
    assert (len(counts), sum(counts)) == (steps, block)
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("bad", [(10, 10, 4), (16, 5, 8), (0, 1, 1), (8, 0, 8), (8, 8, 0)])
def test_impossible_options_are_refused(bad):
    with pytest.raises(UserError, match=r"^decoding: "):
        DecodingOptions(*bad)
