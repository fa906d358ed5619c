"""A published loop of models in blocks gives the same tokens in a batch, alone, with a cache, and where rows end."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from stabledllm.decoding import DecodingOptions, generate
from stabledllm.models.loading import load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.streams import Key, Stream
from tests.fakes.block_models import MASK_ID, write_fast_dllm, write_sdar
from tests.fakes.llada2 import MASK_ID as LLADA2_MASK
from tests.fakes.llada2 import write_llada2

SIZE, LENGTH, NEVER = 4, 8, -1
WRITERS = {
    "sdar": (write_sdar, MASK_ID, "block_size"),
    "fast-dllm": (write_fast_dllm, MASK_ID, "bd_size"),
    "llada2": (write_llada2, LLADA2_MASK, "block_size"),
}
FAMILIES = (*WRITERS, "tiny")


@cache
def model_of(name: str) -> tuple:
    """A random model in float64 in blocks of 4, and its mask token."""
    if name == "tiny":
        torch.manual_seed(0)
        shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
        config = TinyMDMConfig(**shape, vocab_size=272, initializer_range=0.3, mask_token_id=260, block_size=SIZE)
        return TinyMDM(config).double().eval(), 260
    write, mask_id, key = WRITERS[name]
    with TemporaryDirectory() as folder:
        checkpoint = write(Path(folder, name), std=0.35, config={key: SIZE})
        return load_model(str(checkpoint)).model.double().eval(), mask_id


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
    ends = {"mask_id": mask_id, "eos_id": end, "pad_id": 0, "first": first, "stats": stats}
    return generate(model, rows, chosen, **ends)


def check(name: str, reference, seed: int, *, sampled: bool = False, **options) -> list[list[int]]:
    """The reference's answers in every form; and where a token of them is the end token, cut there."""
    model, mask_id = model_of(name)
    rows, expected = prompts(name, seed), []
    for number, row in enumerate(rows):
        more = {"uniforms": partial(uniforms, number, len(row))} if sampled else {}
        logits = partial(logits_of, model, len(row))
        expected.append(reference(logits, row, length=LENGTH, size=SIZE, mask_id=mask_id, **more))
    for cached in ("none", "prefix"):
        assert decode(model, mask_id, rows, cache=cached, **options) == expected, cached
    assert decode(model, mask_id, rows[2:3], first=2, cache="prefix", **options) == expected[2:3], "alone"
    end = expected[0][2]
    cut = [answer[: answer.index(end)] if end in answer else answer for answer in expected]
    assert decode(model, mask_id, rows, end=end, cache="prefix", **options) == cut, "rows leave the batch"
    return expected


def uniforms(row: int, prompt: int, call: int, length: int) -> torch.Tensor:
    place = (torch.arange(length) - prompt).clamp(min=0)
    return Key(0, call).token_uniforms(Stream.DECODING, torch.tensor([row]), place)[0]
