"""Tied weights of which an adapter changes one are two weights from then on, in memory, merged and read back."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from stabledllm.models.adapters import LoRAOptions, add_lora, merged
from stabledllm.models.loading import load_model
from tests.fakes.converted import write_a2d
from tests.fakes.hub_models import write_dream, write_llada, write_qwen2
from tests.models.families.test_masked_lm import write as write_masked_lm

TIED = {
    "llada": (write_llada, "weight_tying", "model.transformer.ff_out", "wte", "q_proj"),
    "dream": (write_dream, "tie_word_embeddings", "lm_head", "embed_tokens", "q_proj"),
    "a2d": (write_a2d, "tie_word_embeddings", "lm_head", "embed_tokens", "q_proj"),
    "qwen2": (write_qwen2, "tie_word_embeddings", "lm_head", "embed_tokens", "q_proj"),
    "bert": (None, "tie_word_embeddings", "cls.predictions.decoder", "word_embeddings", "query"),
}
IDS = torch.arange(18).view(2, 9)


@torch.no_grad()
def logits(loaded) -> torch.Tensor:
    mask = torch.ones_like(IDS)
    return loaded.model.eval()(IDS, mask, selected=mask.bool()).logits


@pytest.mark.filterwarnings("ignore:.*no chat template", "ignore:.*tie")
@pytest.mark.parametrize("changed", ["head", "embedding", "both", "lora on the embedding", "neither"])
@pytest.mark.parametrize("name", TIED)
def test_what_is_read_back_is_what_was_trained(tmp_path, name, changed):
    write, key, head, embedding, target = TIED[name]
    if write is None:
        write_masked_lm(tmp_path / "base", name)
    else:
        write(tmp_path / "base", config={key: True})
    loaded = load_model(str(tmp_path / "base"))
    saved = {"head": (head,), "embedding": (embedding,), "both": (head, embedding)}.get(changed, ())
    targets = (target, embedding) if changed.startswith("lora") else (target,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, that it ties nothing
        adapted = add_lora(loaded, LoRAOptions(rank=2, target_modules=targets, modules_to_save=saved))
    torch.manual_seed(1)
    for parameter in adapted.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trained = logits(adapted)
    assert (trained - logits(load_model(str(tmp_path / "base")))).abs().max() > 0.01
    adapted.save(tmp_path / "adapter")
    again = load_model(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), trained, rtol=1e-4, atol=1e-4)
    assert again.model.config.tie_word_embeddings is (changed == "neither")
    whole = merged(again)
    torch.testing.assert_close(logits(whole), trained, rtol=1e-4, atol=1e-4)
    whole.save(tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config.get(key, True) is (changed == "neither")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "merged"))), trained, rtol=1e-4, atol=1e-4)
