"""A training step of block diffusion against the doubled padded form. Target: at most 0.6 of its time.

The doubled form sends the noisy and the clean copy of every row through the model whole; ours leaves out the noisy
blocks that carry no loss, such as the prompt's. SDAR's layers, 2 x 128, vocabulary 8,192; one row of 1,024 tokens, of
which the prompt is the named share; forward and backward; blocks of 4 and 32 tokens; the noise of ``standard``. Both
forms have the same loss. In CPU seconds, taken in turns, so that what else the machine does weighs little.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import save

from stabledllm.models.families.block_config import SDARConfig
from stabledllm.models.families.block_model import SDARForCausalLM
from stabledllm.models.families.two_copies import TwoCopies
from stabledllm.noise.blocks import Blocks, Units
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key

VOCABULARY, MASK, LENGTH = 8192, 8191, 1024
SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 384}
BLOCKS, PROMPTS, STEPS = (4, 32), (0.25, 0.5, 0.75), 2
OURS = TwoCopies.of


def whole(masked: torch.Tensor, block_ids: torch.Tensor) -> TwoCopies:
    """The doubled form: every noisy block goes through the model."""
    return OURS(torch.ones_like(masked), block_ids)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = SDARConfig(vocab_size=VOCABULARY, num_key_value_heads=1, head_dim=64, **SHAPE)
    model = SDARForCausalLM._from_config(config, attn_implementation="sdpa").train()
    ids, method, ratios = torch.randint(0, MASK, (1, LENGTH)), Method.parse("standard"), {}

    def step(size: int, prompt: float, number: int) -> float:
        blocks, place = Blocks(size, from_start=True), torch.arange(LENGTH)
        response = (place >= prompt * LENGTH)[None]
        units = Units.of(Rows(torch.tensor([0]), 1, response, place), blocks, torch.tensor([0]), LENGTH // size)
        masked = units.draw(method, Key(0, number), method.sampler()).mask[:, 0]
        form = {"block_ids": blocks.ids(response, torch.ones_like(response)), "selected": masked, "targets": ids}
        start = time.process_time()
        model(torch.where(masked, MASK, ids), **form).nll.mean().backward()
        return time.process_time() - start

    for size in BLOCKS:
        for prompt in PROMPTS:
            taken = {form: [] for form in (OURS, whole)}
            for number in range(STEPS):
                for form, seconds in taken.items():
                    TwoCopies.of = form
                    seconds.append(step(size, prompt, number))
            ours, doubled = (statistics.median(seconds) for seconds in taken.values())
            ratios[f"block {size}, prompt {prompt:g}"] = ours / doubled
    save("block_copies", ratios, shape=SHAPE, vocabulary=VOCABULARY, length=LENGTH, steps=STEPS)


if __name__ == "__main__":
    main()
