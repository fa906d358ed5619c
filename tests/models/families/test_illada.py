"""iLLaDA (arXiv:2606.25331) is LLaDA with fewer key heads, one matrix for embedding and output layer, and mask id 5."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from stabledllm.models.families.llada import LLaDAConfig, LLaDAModelLM
from stabledllm.models.loading import load_model
from tests.fakes.hub_models import write_llada
from tests.models.families.cases import config_of, stored
from tests.models.families.published import llada_logits

SPECIAL = ["<|endoftext|>", "<|startoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|mdm_mask|>"]
SHAPE = {"n_kv_heads": 2, "weight_tying": True, "rope_theta": 10000.0}


def write_illada(folder, mask: int | None):
    """The special tokens before the bytes, as its ids say; the config names the mask, or the tokenizer alone does."""
    write_llada(folder, std=0.3, config={**SHAPE, "mask_token_id": mask, "eos_token_id": 0, "pad_token_id": 0})
    named = json.loads((folder / "tokenizer_config.json").read_text())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    named |= {"mask_token": "<|mdm_mask|>"} if mask is None else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


@pytest.mark.parametrize("mask", [5, None], ids=["config", "tokenizer"])
@torch.no_grad()
def test_a_small_copy_loads_as_llada(tmp_path, mask):
    folder = write_illada(tmp_path / "hub", mask)
    loaded = load_model(str(folder))
    assert type(loaded.model) is LLaDAModelLM
    assert (loaded.mask_id, loaded.eos_id, loaded.pad_id) == (5, 2, 0)
    ids = torch.randint(6, 262, (20,), generator=torch.Generator().manual_seed(1))
    ids[::3] = loaded.mask_id
    expected = llada_logits(stored(folder), config_of(folder), ids)
    torch.testing.assert_close(loaded.model.eval()(ids[None]).logits[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("Tom has <|mdm_mask|>")) == "Tom has <|mdm_mask|>"
    assert 5 not in loaded.tokenizer.encode("<|mdm_mask|>")
    loaded.save(tmp_path / "saved")
    assert stored(tmp_path / "saved").keys() == stored(folder).keys()
    assert load_model(str(tmp_path / "saved")).mask_id == 5


def test_the_published_size():
    """32 layers, 8 key heads, 155,136 rows, tied: 7.6 B parameters."""
    shape = {"n_kv_heads": 8, "mlp_hidden_size": 14336, "vocab_size": 155136, "weight_tying": True}
    with torch.device("meta"):
        model = LLaDAModelLM(LLaDAConfig(**shape))
    assert f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B" == "7.62 B"
