"""A tiny random model and rows of unequal length for it."""

from __future__ import annotations

import torch

from stabledllm.data.rows import EncodingOptions, TokenRow, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.forward.meter import MeteredModel
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig

MASK, PAD = 256, 257


def model(width: int = 16, layers: int = 2, seed: int = 0, **config) -> TinyMDM:
    """A random model of two heads in float64."""
    shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 2}
    torch.manual_seed(seed)
    return TinyMDM(TinyMDMConfig(**shape | {"intermediate_size": 2 * width} | config)).double()


def metered(network: TinyMDM) -> MeteredModel:
    """A model of these token ids, as meters take it."""
    return MeteredModel(network, MASK, PAD)


def rows(n: int = 6) -> list[TokenRow]:
    """The first n synthetic examples, with their syntax tokens marked."""
    examples = load_examples("synthetic:easy", split="train", n=n, seed=0)
    return encode_examples(examples, ByteTokenizer(), EncodingOptions(syntax="code")).rows
