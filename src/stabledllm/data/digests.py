"""Digests of data: two runs on the same rows have the same digest, wherever the rows are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

_CONTENT = (
    "messages", "text", "prompt_length", "gold", "task", "caption", "tools", "given", "rejected", "columns",
    "conversational",
)  # fmt: skip
"""The keys of an example that change a run's numbers; ``origin`` only says where the example was read."""


def text_digest(text: str) -> str:
    """The digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def content_digest(examples: Sequence[dict]) -> str:
    """The digest of examples' content, in their order; images count by their codes, which is what is trained on."""
    digest = hashlib.sha256()
    for example in examples:
        values = {key: example[key] for key in _CONTENT if key in example}
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
        for key in ("input_ids", "codes"):
            if key in example:
                digest.update(np.asarray(example[key]).astype(np.int64).tobytes())
        digest.update(b"\n")
    return digest.hexdigest()[:32]
