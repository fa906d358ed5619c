"""Decoding: from a model and prompts to completions. Knows no tokenizer and no scoring."""

from stabledllm.decoding.low_confidence import DecodingOptions, generate

__all__ = ["DecodingOptions", "generate"]
