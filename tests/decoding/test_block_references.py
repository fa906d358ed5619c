"""Every published loop of models in blocks, in every layout: the same tokens alone, in a batch and with a cache."""

from __future__ import annotations

import re
from functools import partial

import pytest

from stabledllm.decoding import DecodingStats
from stabledllm.errors import UserError
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from tests.checks.block_decoding import FAMILIES, LENGTH, SIZE, check, decode, model_of, prompts
from tests.decoding import block_references as references

ORDERED = {"first_token": "in_turn"}
"""SDAR's and LLaDA2's loops on shifted logits: a block's first token has no place of its own in them."""
LOOPS = {
    "static": ({"strategy": "static", "steps": 4}, {}),
    "static, two a call": ({"strategy": "static", "steps": 2}, {"steps": 4}),
    "static, uneven": ({"strategy": "static", "steps": 3}, {"steps": 6}),
    "dynamic": ({"strategy": "dynamic", "steps": 4, "threshold": 0.1}, {"threshold": 0.1}),
    "sequential": ({"strategy": "sequential", "steps": 4}, {"order": "sequential"}),
    "entropy_bounded": (
        {"strategy": "entropy_bounded", "steps": 4, "bound": 8.0},
        {"order": "entropy", "entropy_bound": 8.0},
    ),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", FAMILIES)
def test_sdars_loops(name, loop):
    given, options = LOOPS[loop]
    own = ORDERED if name == "fast-dllm" else {}
    found = check(name, partial(references.sdar, **given), 0, **options, **own)
    assert len({tuple(answer) for answer in found}) == len(found), "or the test is about nothing"
    if loop in ("static", "dynamic"):
        check(name, partial(references.sdar, **given), 1, **options, **own)


@pytest.mark.parametrize("name", ["sdar", "llada2"])
def test_llada2s_threshold(name):
    for seed, threshold in ((0, 0.1), (1, 0.3)):
        loop = partial(references.llada2, steps=2, threshold=threshold)
        check(name, loop, seed, steps=LENGTH // 2, threshold=threshold)


@pytest.mark.parametrize(("sub_block", "threshold"), [(4, 1.0), (2, 1.0), (2, 0.1), (1, 1.0)])
def test_fast_dllms_loop(sub_block, threshold):
    loop = partial(references.fast_dllm, sub_block=sub_block, threshold=threshold)
    own = {} if sub_block == SIZE else {"sub_block": sub_block}
    found = check("fast-dllm", loop, 0, threshold=threshold, **own)
    assert found == check("fast-dllm", loop, 0, threshold=threshold, first_token="ahead", **own)
    check("fast-dllm", loop, 1, threshold=threshold, **own)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.3}])
@pytest.mark.parametrize("name", ["sdar", "tiny"])
def test_sampled_tokens_are_as_sure_as_their_uncut_probability(name, options):
    given = {"strategy": "dynamic", "steps": 4, "threshold": 0.1} | options
    drawn = {"temperature": 1.0, "threshold": 0.1} | options
    check(name, partial(references.sdar, **given), 0, sampled=True, **drawn)


def test_the_loops_differ():
    """Threshold, bound, order, sub-blocks and the first token each change some answer."""
    for name, options in (
        ("sdar", ({}, {"threshold": 0.1}, {"order": "sequential"}, {"order": "entropy", "entropy_bound": 8.0})),
        ("fast-dllm", ({}, ORDERED, {"sub_block": 2}, {"sub_block": 2} | ORDERED)),
    ):
        model, mask_id = model_of(name)
        rows = [row for seed in (0, 1, 2) for row in prompts(name, seed)]
        answers = [str(decode(model, mask_id, rows, **each)) for each in options]
        assert len(set(answers)) == len(answers)


def test_what_goes_through_the_model():
    """One row of 6 + 8 tokens in three blocks, the first with 2 of the prompt's tokens, the last with 2 to spare."""
    row = prompts("sdar", 0)[2] + [1]
    spent = {}
    for name, cached in (("sdar", "none"), ("sdar", "prefix"), ("fast-dllm", "prefix")):
        stats = DecodingStats()
        decode(*model_of(name), [row], stats, cache=cached, order="sequential")
        spent[name, cached] = stats.model_calls, stats.forward_positions
    assert spent["sdar", "none"] == (2 + 4 + 2, 2 * 8 + 4 * 12 + 2 * 16)
    assert spent["sdar", "prefix"] == (2 + 4 + 2, (8 + 4) + (8 + 3 * 4) + (8 + 4)), "a finished block goes through once"
    # The clean block alone, which decides the first token; then the other three, with the position before them.
    assert spent["fast-dllm", "prefix"] == (2 + 4 + 2, (8 + 5) + (4 + 3 * 5) + (4 + 5))


def test_tokens_for_each_forward():
    one, many = DecodingStats(), DecodingStats()
    decode(*model_of("sdar"), prompts("sdar", 0)[1:2], one)
    decode(*model_of("sdar"), prompts("sdar", 0)[1:2], many, threshold=0.001)
    assert one.tokens_per_forward == one.as_dict()["tokens_per_forward"] == 1.0
    assert many.tokens_per_forward == LENGTH / many.model_calls > 2
    assert str(one).startswith("8 model calls, 8 tokens, 1 tokens per forward, ")
    assert DecodingStats().tokens_per_forward == 0


SHIFTED = "decoding.first_token: expected a model in blocks whose logits are shifted, such as"
UNEVEN = "decoding: steps 6 do not divide over 4 sub-blocks (length 8, sub_block 2); steps 4 or 8 do."
REFUSED = [
    (
        "sdar",
        {"sub_block": 3},
        "decoding.sub_block: expected a divisor of the block's 4 tokens, found 3; write 2 or 4.",
    ),
    ("sdar", {"sub_block": 2, "steps": 6}, UNEVEN),
    ("sdar", {"sub_block": 0}, "decoding: length, steps, block and sub_block must be at least 1."),
    ("sdar", {"first_token": "ahead"}, SHIFTED),
    ("fast-dllm", {"first_token": "a head"}, "decoding.first_token: unknown 'a head' (did you mean 'ahead'?)"),
    ("sdar", {"entropy_bound": 1.0}, "decoding.entropy_bound: expected nats above 0 with order 'entropy', found 1"),
    ("sdar", {"cache": "dual"}, "decoding.cache: expected 'prefix' for a model trained in blocks"),
    ("whole", {"sub_block": 2}, "decoding.sub_block: expected a model trained in blocks, found 2 for one that is not;"),
    ("whole", {"first_token": "in_turn"}, "decoding.first_token: expected a model trained in blocks, found 'in_turn'"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_does_not_fit_is_refused(case):
    name, options, message = REFUSED[case]
    model, mask_id = (TinyMDM(TinyMDMConfig(num_hidden_layers=1)).eval(), 260) if name == "whole" else model_of(name)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        decode(model, mask_id, [[1, 2]], **options)
