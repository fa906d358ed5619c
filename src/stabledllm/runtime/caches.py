"""Where caches are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of caches: ``STABLEDLLM_CACHE``, else ``stabledllm`` in the user's cache folder."""
    if own := os.environ.get("STABLEDLLM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "stabledllm"
