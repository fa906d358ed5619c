"""Decoding: from a model and prompts to completions or pictures' codes. Knows no tokenizer and no scoring."""

from stabledllm.decoding.autoregressive import left_to_right
from stabledllm.decoding.images import PictureOptions, PicturePrompt, generate_pictures
from stabledllm.decoding.loop import DecodingStats, generate
from stabledllm.decoding.options import CACHES, ORDERS, SCHEDULES, DecodingOptions

__all__ = [
    "CACHES",
    "ORDERS",
    "SCHEDULES",
    "DecodingOptions",
    "DecodingStats",
    "PictureOptions",
    "PicturePrompt",
    "generate",
    "generate_pictures",
    "left_to_right",
]
