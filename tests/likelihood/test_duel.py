"""DUEL against the law of the decoder by brute force (``decoder_law.py``), and against what the decoder draws."""

import itertools

import numpy as np
import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.errors import UserError
from stabledllm.likelihood.duel import duel
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from tests.checks.statistics import assert_mean
from tests.fakes.hub_models import write_qwen2
from tests.likelihood.decoder_law import completions_law

WORDS, MASK, PROMPT = 3, 3, [1, 0]


def tiny(**config) -> TinyMDM:
    """A float64 model of three words and a mask token, of which each rule below makes another decoder."""
    torch.manual_seed(26)
    shape = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    given = TinyMDMConfig(WORDS + 1, mask_token_id=MASK, initializer_range=0.7, **shape, **config)
    return TinyMDM(given).double().eval()


def answers(size: int) -> list[TokenRow]:
    return [TokenRow([*PROMPT, *words], len(PROMPT)) for words in itertools.product(range(WORDS), repeat=size)]


def scored(model, options: DecodingOptions, rows: list[TokenRow], **more) -> torch.Tensor:
    return duel(model, rows, options, mask_id=MASK, pad_id=0, **more)


CASES = {
    "one by one": ({"length": 3, "steps": 3, "block": 3}, {}),
    "several a step": ({"length": 3, "steps": 2, "block": 3}, {}),
    "margin": ({"length": 3, "steps": 3, "block": 3, "order": "margin"}, {}),
    "margin, drawn hot": ({"length": 3, "steps": 2, "block": 3, "order": "margin", "temperature": 1.7}, {}),
    "entropy, drawn hot": (
        {"length": 3, "steps": 3, "block": 3, "order": "entropy", "temperature": 0.6, "schedule": "dream"}, {},
    ),
    "from the left": ({"length": 3, "steps": 3, "block": 3, "order": "sequential", "temperature": 1.3}, {}),
    "dream": ({"length": 3, "steps": 2, "block": 3, "schedule": "dream"}, {}),
    "threshold": ({"length": 3, "steps": 3, "block": 3, "threshold": 0.45}, {}),
    "entropy bound": ({"length": 3, "steps": 3, "block": 3, "order": "entropy", "entropy_bound": 1.0}, {}),
    "blocks, the last one shorter": ({"length": 4, "steps": 4, "block": 2}, {}),
    "guidance": ({"length": 3, "steps": 3, "block": 3, "guidance": 1.5}, {}),
    "end tokens last": ({"length": 3, "steps": 3, "block": 3, "confidence_eos_eot_inf": True}, {"ends": (0, 2)}),
    "a model in blocks": ({"length": 4, "steps": 4, "block": 2}, {"trained": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_decoder_s_law(case):
    options, more = CASES[case]
    ends, trained = more.get("ends", ()), more.get("trained")
    model, rows = tiny(block_size=trained), answers(3)
    found = scored(model, DecodingOptions(**options), rows, ends=ends).exp()
    assert float(found.sum()) == pytest.approx(1.0)
    shape = {name: value for name, value in options.items() if name not in ("length", "confidence_eos_eot_inf")}
    shape["steps"] //= options["length"] // options["block"]
    law = completions_law(model, PROMPT, 3, mask_id=MASK, ends=ends, trained_in_blocks=bool(trained), **shape)
    assert found.tolist() == pytest.approx([law[tuple(row.input_ids[2:])] for row in rows])
    for one in (0, 13, 26):
        alone = scored(model, DecodingOptions(**options), rows[one : one + 1], ends=ends)
        assert float(alone.exp()) == pytest.approx(float(found[one])), "whatever the batch"


def test_rules_differ():
    """The cases above are cases: no two of them have the same law."""
    found = [
        scored(tiny(block_size=more.get("trained")), DecodingOptions(**options), answers(3), ends=more.get("ends", ()))
        for options, more in CASES.values()
    ]
    for one, other in itertools.combinations(found, 2):
        assert float((one - other).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"order": "margin", "temperature": 1.5, "length": 4, "steps": 2, "block": 2, "cache": "dual"}, None),
        ({"order": "entropy", "temperature": 0.8, "length": 4, "steps": 4, "block": 2, "cache": "prefix"}, None),
        ({"order": "margin", "temperature": 1.2, "length": 4, "steps": 4, "block": 2, "cache": "prefix"}, 2),
    ],
)
def test_it_is_how_often_the_decoder_draws_a_completion(options, trained):
    """The library's own decoder, with its caches: shares of its completions against the exact probabilities."""
    model, n = tiny(block_size=trained), 2000
    options = DecodingOptions(**options)
    drawn = np.array(generate(model, [PROMPT] * n, options, mask_id=MASK, eos_id=-1, pad_id=0))
    rows = answers(4)
    found = scored(model, options, rows).exp()
    assert float(found.sum()) == pytest.approx(1.0)
    for i in found.argsort(descending=True)[:8].tolist():
        share = (drawn == np.array(rows[i].input_ids[2:])).all(1).astype(float)
        assert_mean(share, float(found[i]), f"{rows[i].input_ids[2:]}")


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_rows_of_unequal_length_in_one_batch(cache):
    model = tiny()
    options = DecodingOptions(length=4, steps=4, block=2, cache=cache)
    rows = [
        TokenRow([0, 1, 2, 2, 0, 1, 1, 2], 3),
        TokenRow([2, 1], 1),
        TokenRow([2, 1, 1, 0], 1),
        TokenRow([0, 2, 1, 0], 2),
    ]
    stats = DecodingStats()
    found = scored(model, options, rows, stats=stats)
    alone = [float(scored(model, options, [row])) for row in rows]
    assert found.tolist() == pytest.approx(alone)
    assert stats.forward_rows == sum(row.response_length for row in rows), "a row that is decided leaves the batch"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "random"}, "draws no positions at random, found decoding.order=random"),
        ({"order": "random", "schedule": "origin"}, "draws no positions at random"),
        (
            {"temperature": 0.5},
            "looks at no drawn token .* found decoding.order=confidence at decoding.temperature=0.5",
        ),
        ({"temperature": 0.5, "threshold": 0.9}, "looks at no drawn token"),
        (
            {"temperature": 0.5, "order": "margin", "confidence_eos_eot_inf": True},
            "found decoding.confidence_eos_eot_inf",
        ),
        ({"top_p": 0.9}, "found decoding.top_p=0.9"),
        ({"logits_eos_inf": True}, "found decoding.logits_eos_inf"),
    ],
)
def test_decoders_without_an_exact_likelihood_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        scored(tiny(), DecodingOptions(length=4, steps=4, block=4, **options), answers(1))


def test_rows_and_models_without_one_are_refused(tmp_path):
    from stabledllm.models.loading import load_model

    options = DecodingOptions(length=4, steps=4, block=4)
    with pytest.raises(UserError, match="row 0: expected for 'duel' an answer that ends its row"):
        scored(tiny(), options, [TokenRow([0, 1, 2], 1, tail=1)])
    with pytest.raises(UserError, match="no mask token within the row"):
        scored(tiny(), options, [TokenRow([0, MASK], 1)])
    with pytest.raises(UserError, match="expected block 2, with which the model was trained"):
        scored(tiny(block_size=2), options, answers(1))
    with pytest.raises(UserError, match="found an autoregressive one"):
        scored(load_model(str(write_qwen2(tmp_path))).model, options, answers(1))
    shifted = tiny(block_size=2)
    shifted.config.shift_logits = True
    hot = DecodingOptions(length=2, steps=2, block=2, order="margin", temperature=1.0)
    with pytest.raises(UserError, match=r"expected decoding\.first_token=in_turn"):
        scored(shifted, hot, answers(1))
