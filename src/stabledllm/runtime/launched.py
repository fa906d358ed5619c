"""Tells which of several launched processes this is, from the launcher's environment alone."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this is the rank that reports and writes."""
    return int(os.environ.get("RANK", "0")) == 0
