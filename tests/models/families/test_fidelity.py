"""The native families compute the published architectures."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from stabledllm.models.families.dream import DreamModel
from stabledllm.models.families.llada import LLaDAModelLM
from stabledllm.models.families.mmada import MMadaModelLM
from tests.fakes.hub_models import write_dream, write_qwen2
from tests.models.families.cases import CASES, config_of, load, random_ids, stored


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_the_published_architecture(tmp_path, name, attention):
    folder = CASES[name].checkpoint(tmp_path, std=0.3)
    ids = random_ids(2, 33)
    with torch.no_grad():
        ours = load(folder, attention=attention)(ids).logits
    plain = torch.stack([CASES[name].published(stored(folder), config_of(folder), row) for row in ids])
    assert plain.std() > 0.5, "logits near zero would hide a difference"
    torch.testing.assert_close(ours.double(), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_mmadas_padded_captions_and_image_tokens(tmp_path, attention):
    """Rows of unequal padding on the left, ids up to the last image token, at the positions that they have padded."""
    folder = CASES["mmada"].checkpoint(tmp_path, std=0.3)
    ids = torch.randint(0, 288, (3, 30), generator=torch.Generator().manual_seed(4))
    hidden = torch.tensor([0, 3, 11])
    seen = torch.arange(30) >= hidden[:, None]
    with torch.no_grad():
        ours = load(folder, attention=attention)(ids, seen).logits
    for i, row in enumerate(ids):
        plain = CASES["mmada"].published(stored(folder), config_of(folder), row, int(hidden[i]))
        torch.testing.assert_close(ours[i, hidden[i] :].double(), plain[hidden[i] :], rtol=1e-4, atol=1e-4)


def test_dream_is_qwen2_without_its_causal_mask(tmp_path):
    """transformers' own Qwen2, given a mask that forbids nothing, on the same weights."""
    folder = write_dream(tmp_path, std=0.3)
    keys = {k: v for k, v in config_of(folder).items() if k not in ("model_type", "architectures", "auto_map")}
    theirs = Qwen2ForCausalLM(Qwen2Config(**keys)).eval()
    theirs.load_state_dict(stored(folder))
    ids = random_ids(2, 17)
    everything = torch.zeros(2, 1, 17, 17)
    with torch.no_grad():
        logits = theirs(ids, attention_mask=everything).logits
        causal = theirs(ids).logits
        ours = load(folder)(ids).logits
    torch.testing.assert_close(ours[:, 1:], logits[:, :-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[:, 0], logits[:, 0], rtol=1e-4, atol=1e-5)
    assert (causal - logits).abs().max() > 0.1


def test_the_helper_writes_what_qwen2_reads(tmp_path):
    """The layout that the Dream checkpoints share is transformers' own, name by name."""
    folder = write_qwen2(tmp_path)
    model, info = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert {k: tuple(v.shape) for k, v in stored(folder).items()} == {
        k: tuple(v.shape) for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize("name", ["llada", "dream", "a2d-qwen3"])
def test_bfloat16_weights_keep_positions_in_float32(tmp_path, name):
    """Far from the start an angle in bfloat16 would be off by whole turns; a cast of the model must not spoil it."""
    folder = CASES[name].checkpoint(tmp_path)
    wide = load(folder)
    cast = load(folder).to(torch.bfloat16)
    loaded = load(folder, dtype=torch.bfloat16)
    ids, far = random_ids(1, 12), torch.arange(2000, 2012)[None]
    with torch.no_grad():
        exact = wide(ids, position_ids=far).logits
        assert torch.equal(cast(ids, position_ids=far).logits, loaded(ids, position_ids=far).logits)
        error = (loaded(ids, position_ids=far).logits.float() - exact).abs().max()
        near = (loaded(ids).logits.float() - wide(ids).logits).abs().max()
    assert error < 3 * near, "no worse far from the start than at it"


@pytest.mark.parametrize(("name", "dtype"), [("llada", torch.float32), ("dream", torch.bfloat16)])
def test_rotations_are_in_the_published_precision(tmp_path, name, dtype):
    """LLaDA turns queries and keys in float32 whatever the weights; Dream in the weights' precision."""
    model, seen = load(CASES[name].checkpoint(tmp_path), dtype=torch.bfloat16), []
    model.layers()[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.extend(kwargs["position_embeddings"]), with_kwargs=True
    )
    model(random_ids(1, 5))
    assert [x.dtype for x in seen] == [dtype, dtype]


@pytest.mark.parametrize(
    ("kind", "keys", "parameters"),
    [
        (LLaDAModelLM, {"mlp_hidden_size": 12288}, 8_015_581_184),
        (MMadaModelLM, {"mlp_hidden_size": 12288, "new_vocab_size": 134656}, 8_082_690_048),
        (DreamModel, {}, 7_615_616_512),
    ],
)
def test_the_published_sizes(kind, keys, parameters):
    """Of LLaDA-8B, of LLaDA-8B with MMaDA's 134,656 rows, and of Qwen2.5-7B, Dream's start."""
    config = kind.config_class(**keys)
    with torch.device("meta"):
        model = kind(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    published = {"llada": (1e-5, 500_000.0), "mmada": (1e-5, 500_000.0), "Dream": (1e-6, 1_000_000.0)}
    assert (config.rms_norm_eps, config.rope_theta) == published[config.model_type]
