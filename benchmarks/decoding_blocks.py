"""Decoding in blocks: the cache against none, one token a call against a threshold, sub-blocks and first tokens.

SDAR's layers, 2 x 128, and Fast-dLLM v2's with blocks of 32; vocabulary 8,192; 4 prompts of about 250 tokens, 64 new
ones, no row ends early. The output layer is scaled up, so that a random model is sure of some of its tokens: what a
threshold saves depends on their share, which the tokens per forward tell. Ratios of tokens per CPU second, so that what
else the machine does weighs little. With the cache the tokens are the same as without.
"""

from __future__ import annotations

import time

import torch
from common import save

from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.models.families.block_config import FastDLLMConfig, SDARConfig
from stabledllm.models.families.block_model import Fast_dLLM_QwenForCausalLM, SDARForCausalLM

VOCABULARY, MASK, END, LENGTH = 8192, 8191, 8190, 64
SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 384}
LENGTHS, SURE = (256, 231, 250, 242), 60.0
MODELS = {"sdar": (SDARForCausalLM, SDARConfig, 4), "fast-dllm": (Fast_dLLM_QwenForCausalLM, FastDLLMConfig, 32)}
FORMS = {
    "no cache": {},
    "cache": {"cache": "prefix"},
    "cache, threshold 0.9": {"cache": "prefix", "threshold": 0.9},
}
SUB_BLOCKS = {"cache, sub-blocks of 8, threshold 0.9": FORMS["cache, threshold 0.9"] | {"sub_block": 8}}


def model_of(name: str):
    kind, config, block = MODELS[name]
    torch.manual_seed(0)
    size = {"bd_size" if name == "fast-dllm" else "block_size": block}
    made = config(vocab_size=VOCABULARY, num_key_value_heads=1, head_dim=64, tie_word_embeddings=False, **size, **SHAPE)
    model = kind._from_config(made, attn_implementation="sdpa").eval()
    model.lm_head.weight.data *= SURE
    model.lm_head.weight.data[END] = 0
    return model


def main() -> None:
    torch.set_num_threads(1)
    generator, ratios, costs = torch.Generator().manual_seed(1), {}, {}
    prompts = [torch.randint(100, 8000, (n,), generator=generator).tolist() for n in LENGTHS]
    for name, (_, _, block) in MODELS.items():
        model, found, seconds = model_of(name), {}, {}
        for form, options in (FORMS | (SUB_BLOCKS if name == "fast-dllm" else {})).items():
            stats, chosen = DecodingStats(), DecodingOptions(length=LENGTH, steps=LENGTH, block=block, **options)
            began = time.process_time()
            found[form] = generate(model, prompts, chosen, mask_id=MASK, eos_id=END, pad_id=END, stats=stats)
            seconds[form] = time.process_time() - began
            costs[f"{name}, {form}"] = stats.as_dict() | {"cpu_seconds": seconds[form]}
            if form != "no cache":
                ratios[f"{name}, {form}: speed"] = seconds["no cache"] / seconds[form]
                ratios[f"{name}, {form}: tokens per forward"] = stats.tokens_per_forward
        if found["cache"] != found["no cache"]:
            raise SystemExit(f"{name}: the cache changes tokens")
    save("decoding_blocks", ratios, batch=len(LENGTHS), vocabulary=VOCABULARY, prompts=LENGTHS, **SHAPE, stats=costs)


if __name__ == "__main__":
    main()
