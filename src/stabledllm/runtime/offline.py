"""Whether the hub may be asked, and the words that say how to allow it; the command line is offline unless told."""

from __future__ import annotations

import os

HOW_TO_DOWNLOAD = "HF_HUB_OFFLINE=0 allows the download (typed before the command: HF_HUB_OFFLINE=0 stabledllm ...)"


def is_offline() -> bool:
    """Whether the environment keeps the hub's library off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def how_to_reach(otherwise: str) -> str:
    """What to set to download, where that is switched off; else ``otherwise``, which says why it failed."""
    return HOW_TO_DOWNLOAD if is_offline() else otherwise
