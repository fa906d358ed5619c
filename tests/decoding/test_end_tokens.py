"""LLaDA's two options on end tokens, against its algorithm written plainly (``references.py``)."""

import pytest
import torch

from stabledllm.build import build_decoding
from stabledllm.config.settings import DecodingSettings
from stabledllm.decoding import DecodingOptions, generate, left_to_right
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import EOS, MASK
from stabledllm.models.loading import load_model
from tests.decoding import references
from tests.decoding.test_generate import PROMPTS, cut, model
from tests.fakes.hub_models import write_dream, write_llada

SHAPE = {"length": 12, "steps": 6, "block": 4}
TURN = 65
"""A second token that ends the turn, as LLaDA's <|eot_id|> beside <|endoftext|>."""


def decode(prompts, options, tiny, ends=(EOS, TURN)):
    return generate(tiny, prompts, options, mask_id=MASK, eos_id=EOS, pad_id=EOS, ends=ends)


def reference(tiny, prompt, **more):
    return cut(references.llada(tiny, prompt, **SHAPE, mask_id=MASK, **more))


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_they_are_llada_s_in_any_batch(guidance):
    tiny, found = model(1.0), {}
    plain = decode(PROMPTS, DecodingOptions(**SHAPE, guidance=guidance), tiny)
    for name, more in (("logits_eos_inf", {"never": [EOS]}), ("confidence_eos_eot_inf", {"last": [EOS, TURN]})):
        options = DecodingOptions(**SHAPE, guidance=guidance, **{name: True})
        expected = [reference(tiny, prompt, guidance=guidance, **more) for prompt in PROMPTS]
        found[name] = decode(PROMPTS, options, tiny)
        assert found[name] == expected
        assert [decode([prompt], options, tiny)[0] for prompt in PROMPTS] == expected
        assert found[name] != plain
    assert min(map(len, plain)) < SHAPE["length"], "without it they end"
    assert all(len(answer) == SHAPE["length"] for answer in found["logits_eos_inf"])
    both = DecodingOptions(**SHAPE, guidance=guidance, logits_eos_inf=True, confidence_eos_eot_inf=True)
    expected = [reference(tiny, prompt, guidance=guidance, never=[EOS], last=[EOS, TURN]) for prompt in PROMPTS]
    assert decode(PROMPTS, both, tiny) == expected


@pytest.mark.parametrize("order", ["margin", "entropy"])
def test_an_end_is_the_last_token_of_its_block_in_every_order(order):
    """One token a step: where an end token is decided, nothing else of its block is left."""
    tiny = model(1.0)
    options = DecodingOptions(length=4, steps=4, block=4, order=order, confidence_eos_eot_inf=True)
    whole = generate(tiny, PROMPTS, options, mask_id=MASK, eos_id=-1, pad_id=EOS, ends=(EOS,))
    plain = DecodingOptions(length=4, steps=4, block=4, order=order)
    assert whole != generate(tiny, PROMPTS, plain, mask_id=MASK, eos_id=-1, pad_id=EOS)
    for answer, prompt in zip(whole, PROMPTS, strict=True):
        for at in (i for i, token in enumerate(answer) if token == EOS):
            others = [i for i in range(4) if answer[i] != EOS]
            shown = [*prompt, *(answer[i] if i in others else MASK for i in range(4))]
            law = references.guided_logits(tiny, torch.tensor(shown), len(prompt), MASK, 0.0)
            assert int(law[len(prompt) + at].argmax()) == EOS or answer.count(EOS) > 1


def test_a_threshold_decides_no_end_at_once():
    """However sure the model is of it: of the tokens above the threshold an end waits for its turn."""
    tiny, prompt = model(3.0), PROMPTS[0]
    plain = DecodingOptions(length=4, steps=4, block=4, threshold=0.05)
    last = DecodingOptions(length=4, steps=4, block=4, threshold=0.05, confidence_eos_eot_inf=True)
    first, held = (
        generate(tiny, [prompt], options, mask_id=MASK, eos_id=-1, pad_id=EOS, ends=(EOS,))[0]
        for options in (plain, last)
    )
    assert EOS in first
    assert first != held


def test_settings_and_refusals():
    assert build_decoding(DecodingSettings(logits_eos_inf=True)).logits_eos_inf
    with pytest.raises(UserError, match="confidence_eos_eot_inf: expected an order by how sure the model is"):
        DecodingOptions(order="random", confidence_eos_eot_inf=True)
    for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
        with pytest.raises(UserError, match=rf"decoding\.{name}: expected a masked diffusion model"):
            left_to_right(DecodingOptions(**{name: True}))


def test_ends_are_the_sequence_s_then_the_turn_s(tmp_path):
    llada, dream = load_model(str(write_llada(tmp_path / "l"))), load_model(str(write_dream(tmp_path / "d")))
    names = [[each.tokenizer.special_name(token) for token in each.ends] for each in (llada, dream)]
    assert names == [["<|endoftext|>", "<|eot_id|>"], ["<|endoftext|>", "<|im_end|>"]]
    assert load_model("tiny").ends == (EOS,)
