"""A small model with the byte tokenizer as TRL takes it, pairs and prompts for it, and arguments of both trainers."""

from __future__ import annotations

from functools import cache

from stabledllm.integrations.trl import load_for_trl
from tests.fakes import tiny

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
QUIET = {
    "report_to": "none", "use_cpu": True, "bf16": False, "activation_checkpointing": False, "disable_tqdm": True,
    "logging_steps": 1, "dataloader_pin_memory": False, "learning_rate": 1e-3, "seed": 5, "save_strategy": "no",
}  # fmt: skip


def model(**config):
    """In float64, so that what should be equal is equal to many digits."""
    return tiny.model(16, 1, **config)


@cache
def tokenizer():
    """One for all, as datasets know their stored tokens again by it."""
    return load_for_trl("tiny")[1]


def said(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def pairs() -> list[dict]:
    return [
        {"prompt": said("user", word), "chosen": said("assistant", word * 2), "rejected": said("assistant", "no")}
        for word in WORDS
    ]


def prompts() -> list[dict]:
    return [{"prompt": said("user", word), "wanted": word[0]} for word in WORDS]
