"""What data hold, in few characters: two runs on the same rows have the same digest, wherever the rows lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from stabledllm.images import sources as pictures

_HELD = ("messages", "text", "prompt_length", "gold", "task", "caption")
"""What of an example decides a number; ``origin`` only says where it stood."""


def content_digest(examples: Sequence[dict], spec: str) -> str:
    """A digest of what examples hold, in their order.

    Args:
        spec: where they are from: pictures count by their source's own fingerprint, so that none is read for it.
    """
    digest = hashlib.sha256()
    for example in examples:
        held = {key: example[key] for key in _HELD if key in example}
        digest.update(json.dumps(held, sort_keys=True, default=str).encode())
        if "input_ids" in example:
            digest.update(np.asarray(example["input_ids"], dtype=np.int64).tobytes())
        digest.update(b"\n")
    if examples and "codes" in examples[0]:
        digest.update(pictures.fingerprint(spec).encode())
    return digest.hexdigest()[:32]
