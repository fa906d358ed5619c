"""Decoding with kept keys and values gives the plain reference's tokens, and for a model trained in blocks the exact
ones."""

import re

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from stabledllm.build import build_decoding
from stabledllm.config.settings import DecodingSettings
from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.errors import UserError
from stabledllm.models.families.masked_lm import adapt
from stabledllm.models.key_value_cache import KeyValueCache
from stabledllm.models.loading import load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from tests.decoding import references
from tests.fakes import hub_models as hub_layout
from tests.fakes.converted import write_a2d

PROMPTS = [[*range(5 + i, 5 + i + length)] for i, length in enumerate((3, 5, 11, 6, 2, 19, 8, 4))]
"""Eight prompts of unequal length, of which the longest is not the first."""
SHAPE = {"length": 16, "steps": 16, "block": 4}
MASK, END = 260, 256
FAMILIES = ("tiny", "llada", "dream", "a2d")


def tiny(block_size: int | None = None) -> TinyMDM:
    torch.manual_seed(0)
    config = TinyMDMConfig(
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
        mask_token_id=MASK,
        block_size=block_size,
    )
    return TinyMDM(config).double().eval()


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Name to model, its projections to keys and values, and whether its logits are shifted."""
    folder = tmp_path_factory.mktemp("hub")
    llada = hub_layout.write_llada(folder / "llada", std=0.4, config={"n_kv_heads": 2})
    dream = hub_layout.write_dream(folder / "dream", std=0.4)
    models = {
        "tiny": tiny(),
        "llada": load_model(str(llada)).model.double().eval(),
        "dream": load_model(str(dream)).model.double().eval(),
        "a2d": load_model(str(write_a2d(folder / "a2d", std=0.4))).model.double().eval(),
    }
    kept = {
        "tiny": [(b.qkv_proj, 32) for b in models["tiny"].blocks],
        "llada": [(p, 0) for b in models["llada"].layers() for p in (b.k_proj, b.v_proj)],
    }
    for name in ("dream", "a2d"):
        kept[name] = [(p, 0) for b in models[name].layers() for p in (b.self_attn.k_proj, b.self_attn.v_proj)]
    return {name: (models[name], kept[name], int(name == "dream")) for name in FAMILIES}


def cut(answer: list[int], end: int = END) -> list[int]:
    return answer[: answer.index(end)] if end in answer else answer


def decode(model, prompts, options: DecodingOptions, stats: DecodingStats | None = None, end: int = END):
    return generate(model, prompts, options, mask_id=MASK, eos_id=end, pad_id=end, stats=stats)


def same_as_reference(family, options: DecodingOptions, end: int = END) -> list[list[int]]:
    model, kept, shift = family
    form = {"length": options.length, "steps": options.steps, "block": options.block, "mask_id": MASK}
    form |= {"cache": options.cache, "guidance": options.guidance, "threshold": options.threshold or 1.0}
    expected = [cut(references.cached(model, kept, p, **form, shift=shift), end) for p in PROMPTS]
    assert [decode(model, [p], options, end=end)[0] for p in PROMPTS] == expected
    assert decode(model, PROMPTS, options, end=end) == expected
    return expected


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_reference_alone_and_in_a_batch(families, name, cache):
    expected = same_as_reference(families[name], DecodingOptions(**SHAPE, cache=cache))
    assert len({tuple(answer) for answer in expected}) == 8, "or the test is about nothing"
    assert expected != decode(families[name][0], PROMPTS, DecodingOptions(**SHAPE)), "it is an approximation"


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_leave_take_their_keys_along(families, name, cache):
    """An end token that comes at different places in different rows."""
    free = decode(families[name][0], PROMPTS, DecodingOptions(**SHAPE, cache=cache))
    end = max({t for answer in free for t in answer}, key=lambda t: sum(t in answer[:12] for answer in free))
    expected = same_as_reference(families[name], DecodingOptions(**SHAPE, cache=cache), end)
    assert len({len(answer) for answer in expected}) > 1, "or the test is about nothing"


@pytest.mark.parametrize("options", [{"guidance": 1.0}, {"threshold": 0.06}, {"guidance": 0.5, "threshold": 0.06}])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["tiny", "dream"])
def test_with_guidance_and_threshold(families, name, cache, options):
    expected = same_as_reference(families[name], DecodingOptions(**SHAPE, cache=cache, **options))
    assert expected != decode(families[name][0], PROMPTS, DecodingOptions(**SHAPE, cache=cache))


@pytest.mark.parametrize("name", FAMILIES)
def test_with_all_positions_it_is_the_forward_without_a_cache(families, name):
    model = families[name][0]
    cache, places = KeyValueCache(), torch.arange(20).expand(3, 20)
    attention = torch.arange(20)[None] < torch.tensor([20, 13, 17])[:, None]
    for seed in range(3):
        ids = torch.randint(0, 250, (3, 20), generator=torch.Generator().manual_seed(seed))
        cache.positions = None if seed == 0 else places.flip(1) if seed == 1 else places
        with torch.no_grad():
            found = model(ids, attention, selected=attention, cache=cache).logits
            torch.testing.assert_close(found, model(ids, attention, selected=attention).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_with_one_step_a_block_is_exact(families, name):
    """The first call of a block computes everything."""
    model, shape = families[name][0], {"length": 16, "steps": 4, "block": 4}
    for cache in ("prefix", "dual"):
        assert decode(model, PROMPTS, DecodingOptions(**shape, cache=cache)) == decode(
            model, PROMPTS, DecodingOptions(**shape)
        )


@pytest.mark.parametrize("more", [{}, {"threshold": 0.06}, {"guidance": 1.0}, {"schedule": "dream", "steps": 24}])
def test_trained_in_blocks_the_prefix_cache_is_exact(more):
    model = tiny(block_size=4)
    plain, spared = DecodingStats(), DecodingStats()
    expected = decode(model, PROMPTS, DecodingOptions(**SHAPE | more), plain)
    options = DecodingOptions(**SHAPE | more, cache="prefix")
    assert decode(model, PROMPTS, options, spared) == expected
    assert [decode(model, [p], options)[0] for p in PROMPTS] == expected
    assert spared.model_calls == plain.model_calls
    assert spared.forward_positions < plain.forward_positions / 2
    assert DecodingOptions(cache="prefix").exact_for(4)


def test_trained_in_blocks_logits_are_the_same():
    model = tiny(block_size=4)
    ids = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    blocks = torch.tensor([[0] * 4 + [1] * 4 + [2] * 4, [0] * 2 + [1] * 4 + [2] * 4 + [-1] * 2])
    cache = KeyValueCache()
    with torch.no_grad():
        model(ids, block_ids=blocks, cache=cache)
        ids[blocks == 2] = MASK
        cache.positions = torch.tensor([[8, 9, 10, 11], [6, 7, 8, 9]])
        found = model(ids, selected=blocks == 2, block_ids=blocks, cache=cache).logits
        torch.testing.assert_close(found, model(ids, selected=blocks == 2, block_ids=blocks).logits)


def test_a_cache_spares_positions_as_it_says(families):
    """One row of 5 + 16: each block computes all once, then prefix the block and what follows, dual the block."""
    calls = {"none": 16 * 21, "prefix": 4 * 21 + 3 * (16 + 12 + 8 + 4), "dual": 4 * 21 + 12 * 4}
    for cache, expected in calls.items():
        stats = DecodingStats()
        decode(families["tiny"][0], PROMPTS[1:2], DecodingOptions(**SHAPE, cache=cache), stats, end=263)
        assert stats.forward_positions == expected


def test_an_empty_prompt_with_shifted_logits(families):
    model, kept, _ = families["dream"]
    options = DecodingOptions(**SHAPE, cache="dual")
    form = SHAPE | {"mask_id": MASK, "cache": "dual"}
    one = cut(references.cached(model, kept, PROMPTS[0], **form, shift=1))
    assert decode(model, [[], PROMPTS[0]], options)[1] == one


def test_caches_are_approximate_and_in_the_settings():
    assert [DecodingOptions(cache=c).exact for c in ("none", "prefix", "dual")] == [True, False, False]
    assert not DecodingOptions(cache="prefix", threshold=0.9).exact_for(32)
    assert build_decoding(DecodingSettings(cache="dual")).cache == "dual"


def test_what_cannot_be_cached_is_refused(families):
    message = "decoding.cache: unknown 'dula' (did you mean 'dual'?)"
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        DecodingOptions(cache="dula")
    with pytest.raises(UserError, match=r"^decoding\.cache: expected 'prefix' .* found 'dual'\.$"):
        decode(tiny(block_size=4), PROMPTS, DecodingOptions(**SHAPE, cache="dual"))
    ids = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(UserError, match=r"^decoding\.cache: expected rows that are not packed"):
        families["llada"][0](ids, segment_ids=ids, cache=KeyValueCache())
    with pytest.raises(UserError, match=r"^decoding\.cache: expected attention 'sdpa' or 'eager', found 'flash_att"):
        KeyValueCache().enter(ids, ids, None, "flash_attention_2")
    config = BertConfig(
        vocab_size=264, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(UserError, match=r"^decoding\.cache: expected a native family, found .* generic MLM adapter\.$"):
        decode(adapt(BertForMaskedLM(config).eval()), PROMPTS, DecodingOptions(**SHAPE, cache="prefix"))
