"""Decoding: from a model and prompts to completions or codes of images; without a tokenizer and without scoring."""

from stabledllm.decoding.autoregressive import left_to_right
from stabledllm.decoding.images import ImageOptions, ImagePrompt, generate_images
from stabledllm.decoding.loop import DecodingStats, generate
from stabledllm.decoding.model_fit import refuse_unsuited
from stabledllm.decoding.options import CACHES, ORDERS, SCHEDULES, DecodingOptions

__all__ = [
    "CACHES",
    "ORDERS",
    "SCHEDULES",
    "DecodingOptions",
    "DecodingStats",
    "ImageOptions",
    "ImagePrompt",
    "generate",
    "generate_images",
    "left_to_right",
    "refuse_unsuited",
]
