"""Every published loop of models in blocks, in every layout: the same tokens alone, in a batch, with and without a cache."""

from __future__ import annotations

import re
from functools import cache, partial

import pytest
import torch

from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.streams import Key, Stream
from tests.decoding import block_references as references
from tests.fakes.block_models import MASK_ID, write_fast_dllm, write_sdar
from tests.fakes.llada2 import MASK_ID as LLADA2_MASK
from tests.fakes.llada2 import write_llada2

SIZE, LENGTH, NEVER = 4, 8, 271
WRITERS = {
    "sdar": (write_sdar, MASK_ID, "block_size"),
    "fast-dllm": (write_fast_dllm, MASK_ID, "bd_size"),
    "llada2": (write_llada2, LLADA2_MASK, "block_size"),
}
FAMILIES = (*WRITERS, "tiny")


@cache
def tiny() -> TinyMDM:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = TinyMDMConfig(**shape, vocab_size=272, initializer_range=0.3, mask_token_id=260, block_size=SIZE)
    return TinyMDM(config).double().eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name to model in float64, in blocks of 4, and its mask token."""
    folder = tmp_path_factory.mktemp("blocks")
    loaded = {"tiny": (tiny(), 260)}
    for name, (write, mask_id, key) in WRITERS.items():
        checkpoint = write(folder / name, std=0.35, config={key: SIZE})
        loaded[name] = load_model(str(checkpoint)).model.double().eval(), mask_id
    return loaded


def prompts(name: str, seed: int) -> list[list[int]]:
    """Their lengths end at each place of a block; the reference model's blocks begin with the response anyway."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (4, 8, 12) if name == "tiny" else (3, 8, 5, 14)
    return [torch.randint(0, 250, (n,), generator=generator).tolist() for n in sizes]


@torch.no_grad()
def logits_of(model, prompt: int, ids: list[int]) -> torch.Tensor:
    """Logits (L, V) of one row without a cache; the reference model is told its blocks, the others know them."""
    row, form = torch.tensor([ids]), {}
    if isinstance(model, TinyMDM):
        place = torch.arange(len(ids)) - prompt
        form = {"block_ids": torch.where(place < 0, 0, place // SIZE + 1)[None]}
    return model(row, **form).logits[0].clone()


def decode(model, mask_id: int, rows, stats=None, end: int = NEVER, first: int = 0, **options) -> list[list[int]]:
    chosen = DecodingOptions(**{"length": LENGTH, "steps": LENGTH, "block": SIZE} | options)
    ends = {"mask_id": mask_id, "eos_id": end, "pad_id": end, "first": first, "stats": stats}
    return generate(model, rows, chosen, **ends)


def check(models, name: str, reference, seed: int, *, sampled: bool = False, **options) -> list[list[int]]:
    """The reference's answers in every form; and where a token of them is the end token, cut there."""
    model, mask_id = models[name]
    rows, expected = prompts(name, seed), []
    for number, row in enumerate(rows):
        more = {"uniforms": partial(uniforms, number, len(row))} if sampled else {}
        logits = partial(logits_of, model, len(row))
        expected.append(reference(logits, row, length=LENGTH, size=SIZE, mask_id=mask_id, **more))
    for cached in ("none", "prefix"):
        assert decode(model, mask_id, rows, cache=cached, **options) == expected, cached
    alone = [decode(model, mask_id, [row], first=i, cache="prefix", **options)[0] for i, row in enumerate(rows)]
    assert alone == expected, "one by one"
    end = expected[0][2]
    cut = [answer[: answer.index(end)] if end in answer else answer for answer in expected]
    assert decode(model, mask_id, rows, end=end, cache="prefix", **options) == cut, "rows leave the batch"
    return expected


def uniforms(row: int, prompt: int, call: int, length: int) -> torch.Tensor:
    place = (torch.arange(length) - prompt).clamp(min=0)
    return Key(0, call).token_uniforms(Stream.DECODING, torch.tensor([row]), place)[0]


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
def test_sdars_loops(models, name, loop):
    given, options = LOOPS[loop]
    own = ORDERED if name == "fast-dllm" else {}
    for seed in (0, 1):
        found = check(models, name, partial(references.sdar, **given), seed, **options, **own)
        assert len({tuple(answer) for answer in found}) == len(found), "or the test is about nothing"


@pytest.mark.parametrize("name", ["sdar", "llada2"])
def test_llada2s_threshold(models, name):
    for seed, threshold in ((0, 0.1), (1, 0.3)):
        loop = partial(references.llada2, steps=2, threshold=threshold)
        check(models, name, loop, seed, steps=LENGTH // 2, threshold=threshold)


@pytest.mark.parametrize(("sub_block", "threshold"), [(4, 1.0), (2, 1.0), (2, 0.1), (1, 1.0)])
def test_fast_dllms_loop(models, sub_block, threshold):
    loop = partial(references.fast_dllm, sub_block=sub_block, threshold=threshold)
    own = {} if sub_block == SIZE else {"sub_block": sub_block}
    found = check(models, "fast-dllm", loop, 0, threshold=threshold, **own)
    assert found == check(models, "fast-dllm", loop, 0, threshold=threshold, first_token="ahead", **own)
    check(models, "fast-dllm", loop, 1, threshold=threshold, **own)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.3}])
@pytest.mark.parametrize("name", ["sdar", "tiny"])
def test_sampled_tokens_are_as_sure_as_their_uncut_probability(models, name, options):
    given = {"strategy": "dynamic", "steps": 4, "threshold": 0.1} | options
    drawn = {"temperature": 1.0, "threshold": 0.1} | options
    check(models, name, partial(references.sdar, **given), 0, sampled=True, **drawn)


def test_the_loops_differ(models):
    """Threshold, bound, order, sub-blocks and the first token each change some answer."""
    for name, options in (
        ("sdar", ({}, {"threshold": 0.1}, {"order": "sequential"}, {"order": "entropy", "entropy_bound": 8.0})),
        ("fast-dllm", ({}, ORDERED, {"sub_block": 2}, {"sub_block": 2} | ORDERED)),
    ):
        model, mask_id = models[name]
        rows = [row for seed in (0, 1, 2) for row in prompts(name, seed)]
        answers = [str(decode(model, mask_id, rows, **each)) for each in options]
        assert len(set(answers)) == len(answers)


def test_what_goes_through_the_model(models):
    """One row of 6 + 8 tokens, which 2 more fill up: three blocks, of which the first holds 2 of the prompt's tokens."""
    row = prompts("sdar", 0)[2] + [1]
    spent = {}
    for name, cached in (("sdar", "none"), ("sdar", "prefix"), ("fast-dllm", "prefix")):
        stats = DecodingStats()
        decode(*models[name], [row], stats, cache=cached)
        spent[name, cached] = stats.model_calls, stats.forward_positions
    assert spent["sdar", "none"] == (2 + 4 + 4, 2 * 8 + 4 * 12 + 4 * 16)
    assert spent["sdar", "prefix"] == (2 + 4 + 4, (8 + 4) + 2 * (8 + 3 * 4)), "a finished block goes through once"
    # The clean block alone, which decides the first token; then the other three, with the position before them.
    assert spent["fast-dllm", "prefix"] == (2 + 4 + 4, (8 + 5) + 2 * (4 + 3 * 5))


def test_tokens_for_each_forward(models):
    one, many = DecodingStats(), DecodingStats()
    decode(*models["sdar"], prompts("sdar", 0)[1:2], one)
    decode(*models["sdar"], prompts("sdar", 0)[1:2], many, threshold=0.001)
    assert one.tokens_per_forward == one.as_dict()["tokens_per_forward"] == 1.0
    assert many.tokens_per_forward == LENGTH / many.model_calls > 2
    assert str(one).startswith("8 model calls, 8 tokens, 1 tokens per forward, ")
    assert DecodingStats().tokens_per_forward == 0


REFUSED = [
    ("sdar", {"sub_block": 3}, "decoding.sub_block: expected a divisor of the block's 4 tokens, found 3; write 2 or 4."),
    ("sdar", {"sub_block": 2, "steps": 6}, "decoding: steps 6 do not divide over 4 sub-blocks (length 8, sub_block 2); "
     "steps 4 or 8 do."),
    ("sdar", {"first_token": "ahead"}, "decoding.first_token: expected a model in blocks whose logits are shifted, such as"),
    ("fast-dllm", {"first_token": "a head"}, "decoding.first_token: unknown 'a head' (did you mean 'ahead'?)"),
    ("sdar", {"entropy_bound": 1.0}, "decoding.entropy_bound: expected nats above 0 with order 'entropy', found 1 with"),
    ("sdar", {"cache": "dual"}, "decoding.cache: expected 'prefix' for a model trained in blocks"),
    ("whole", {"sub_block": 2}, "decoding.sub_block: expected a model trained in blocks, found 2 for one that is not; "
     "write block=2."),
    ("whole", {"first_token": "in_turn"}, "decoding.first_token: expected a model trained in blocks, found 'in_turn'"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_does_not_fit_is_refused(models, case):
    name, options, message = REFUSED[case]
    model, mask_id = models.get(name) or (TinyMDM(TinyMDMConfig(num_hidden_layers=1)).eval(), 260)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        decode(model, mask_id, [[1, 2]], **options)
