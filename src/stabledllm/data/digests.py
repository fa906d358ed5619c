"""What data hold, in few characters: two runs on the same rows have the same digest, wherever the rows lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

_HELD = ("messages", "text", "prompt_length", "gold", "task", "caption")
"""What of an example decides a number; ``origin`` only says where it stood."""


def content_digest(examples: Sequence[dict]) -> str:
    """A digest of what examples hold, in their order; images count by their codes, which is what is trained on."""
    digest = hashlib.sha256()
    for example in examples:
        held = {key: example[key] for key in _HELD if key in example}
        digest.update(json.dumps(held, sort_keys=True, default=str).encode())
        for key in ("input_ids", "codes"):
            if key in example:
                digest.update(np.asarray(example[key]).astype(np.int64).tobytes())
        digest.update(b"\n")
    return digest.hexdigest()[:32]
