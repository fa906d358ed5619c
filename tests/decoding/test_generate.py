"""Greedy decoding gives the published algorithms' tokens, whatever the batch (``references.py``)."""

import re
from functools import cache

import numpy as np
import pytest
import torch

from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.decoding.schedules import per_step
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import EOS, MASK
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.streams import Key, Stream
from tests.checks.statistics import assert_mean
from tests.decoding import references

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


def cut(answer: list[int]) -> list[int]:
    return answer[: answer.index(EOS)] if EOS in answer else answer


def reference(tiny, prompt: list[int], length: int, steps: int, block: int) -> list[int]:
    return cut(references.llada(tiny, prompt, length=length, steps=steps, block=block, mask_id=MASK))


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


def same_in_any_batch(expected: list[list[int]], options: DecodingOptions, tiny: TinyMDM) -> None:
    alone = [
        generate(tiny, [p], options, mask_id=MASK, eos_id=EOS, pad_id=EOS, first=i)[0] for i, p in enumerate(PROMPTS)
    ]
    assert alone == expected
    assert decode(PROMPTS, options, tiny) == expected


@pytest.mark.parametrize("eos_bias", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [0.5, 2.0])
def test_guidance_is_lladas(guidance, eos_bias):
    options, tiny = DecodingOptions(12, 6, 4, guidance=guidance), model(eos_bias)
    shape = {"length": 12, "steps": 6, "block": 4, "mask_id": MASK}
    expected = [cut(references.llada(tiny, p, **shape, guidance=guidance)) for p in PROMPTS]
    same_in_any_batch(expected, options, tiny)
    assert expected != decode(PROMPTS, DecodingOptions(12, 6, 4), tiny)


@pytest.mark.parametrize("order", ["margin", "entropy", "random"])
def test_every_order_in_blocks(order):
    options, tiny = DecodingOptions(12, 6, 4, order=order, seed=3), model(1.0)
    shape = {"length": 12, "steps": 6, "block": 4, "mask_id": MASK, "order": order}
    expected = [cut(references.llada(tiny, p, **shape, uniforms=drawn(i, 12, 3))) for i, p in enumerate(PROMPTS)]
    same_in_any_batch(expected, options, tiny)
    assert expected != decode(PROMPTS, DecodingOptions(12, 6, 4), tiny)


def drawn(row: int, length: int, seed: int):
    """The order's uniforms of a row in each step."""
    place = torch.arange(length)
    return lambda step: Key(seed, step).token_uniforms(Stream.DECODING_ORDER, torch.tensor([row]), place)[0]


DREAM = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


@pytest.mark.parametrize("eos_bias", [0.0, 1.0])
@pytest.mark.parametrize("steps", [12, 5, 20])
@pytest.mark.parametrize("algorithm", [*DREAM, "origin"])
def test_dreams_algorithms(algorithm, steps, eos_bias):
    order, schedule = (DREAM[algorithm], "dream") if algorithm in DREAM else ("random", "origin")
    options, tiny = DecodingOptions(12, steps, 12, order=order, schedule=schedule), model(eos_bias)
    shape = {"length": 12, "steps": steps, "mask_id": MASK, "algorithm": algorithm}
    expected = [cut(references.dream(tiny, p, **shape, uniforms=drawn(i, 12, 0))) for i, p in enumerate(PROMPTS)]
    same_in_any_batch(expected, options, tiny)


@pytest.mark.parametrize("top_p", [0.3, 0.8])
def test_top_p_changes_the_order_as_in_dream(top_p):
    options, tiny = DecodingOptions(12, 6, 12, order="entropy", schedule="dream", top_p=top_p), model()
    shape = {"length": 12, "steps": 6, "mask_id": MASK, "algorithm": "entropy"}
    expected = [cut(references.dream(tiny, p, **shape, top_p=top_p)) for p in PROMPTS]
    same_in_any_batch(expected, options, tiny)
    assert expected != decode(PROMPTS, DecodingOptions(12, 6, 12, order="entropy", schedule="dream"), tiny)


def test_a_threshold_saves_model_calls_and_never_exceeds_the_steps():
    tiny, calls, tokens = model(), [], []
    for threshold in (1.0, 0.08, 0.02):
        options, stats = DecodingOptions(12, 12, 4, threshold=threshold), DecodingStats()
        found = [references.parallel(tiny, p, length=12, steps=12, block=4, mask_id=MASK, threshold=threshold)
                 for p in PROMPTS]  # fmt: skip
        same_in_any_batch([cut(answer) for answer, _ in found], options, tiny)
        tokens.append(generate(tiny, PROMPTS[:1], options, mask_id=MASK, eos_id=EOS, pad_id=EOS, stats=stats))
        calls.append(stats.model_calls)
        assert stats.model_calls <= min(found[0][1], 12)
        assert not options.exact
    assert calls[0] > calls[1] > calls[2]
    assert tokens[0] == decode(PROMPTS[:1], DecodingOptions(12, 12, 4), tiny), "nothing is surer than 1"


def test_tokens_are_drawn_from_the_tempered_nucleus():
    """First token of one-token completions over many rows against the law worked out by hand; same in any batch."""
    tiny, prompt, n = model(), PROMPTS[1], 600
    logits = references.guided_logits(tiny, torch.tensor([*prompt, MASK]), len(prompt), MASK, 0.0)[-1]
    law = references.cut_to_nucleus((logits / 2.0).softmax(-1), 0.9)
    options = DecodingOptions(1, 1, 1, temperature=2.0, top_p=0.9, seed=5)
    answers = decode([prompt] * n, options, tiny)
    tokens = np.array([a[0] if a else EOS for a in answers])
    assert set(tokens.tolist()) <= set(law.nonzero()[:, 0].tolist())
    for token in law.argsort(descending=True)[:5].tolist():
        assert_mean((tokens == token).astype(float), float(law[token]), f"token {token}")
    one = generate(tiny, [prompt], options, mask_id=MASK, eos_id=EOS, pad_id=EOS, first=17)
    assert one[0] == answers[17]
    assert decode([prompt] * 40, DecodingOptions(1, 1, 1, temperature=2.0, top_p=0.9, seed=6), tiny) != answers[:40]


def test_logits_only_where_something_is_left_to_decide():
    tiny, stats = model(), DecodingStats()
    generate(tiny, PROMPTS[:1], DecodingOptions(12, 12, 4), mask_id=MASK, eos_id=EOS, pad_id=EOS, stats=stats)
    assert (stats.model_calls, stats.forward_rows) == (12, 12)
    assert stats.logit_positions == 3 * (4 + 3 + 2 + 1)
    assert stats.tokens > 0
    assert stats.tokens_per_second > 0


def test_a_row_stops_at_its_end_token():
    tiny, stats = model(4.0), DecodingStats()
    answers = generate(tiny, PROMPTS, DecodingOptions(32, 32, 4), mask_id=MASK, eos_id=EOS, pad_id=EOS, stats=stats)
    assert max(len(a) for a in answers) < 16, "or the test is about nothing"
    assert stats.model_calls < 20
    assert stats.forward_rows < 8 * stats.model_calls, "rows leave one by one"


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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"order": "entropie"}, "decoding.order: unknown 'entropie' (did you mean 'entropy'?)"),
        ({"schedule": "cosine"}, "decoding.schedule: unknown 'cosine'"),
        ({"schedule": "origin"}, "decoding.order: schedule 'origin' takes order 'random', found 'confidence'"),
        ({"top_p": 0.0}, "decoding.top_p: expected a share above 0"),
        ({"temperature": -1.0}, "decoding: expected temperature"),
        ({"threshold": 0.9, "order": "entropy"}, "decoding.threshold: expected a probability above 0 with order"),
    ],
)
def test_bad_values_are_named(bad, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        DecodingOptions(**bad)
