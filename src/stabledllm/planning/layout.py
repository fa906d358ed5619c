"""The devices that a run is planned for, and their memory. Loads no framework."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from stabledllm.errors import UserError, did_you_mean

Sharding = Literal["ddp", "fsdp2", "zero2", "zero2_offload", "zero3", "zero3_offload"]
SHARDINGS: tuple[str, ...] = get_args(Sharding)
GIB = 2**30


@dataclass(frozen=True)
class Layout:
    """The devices of a run, how its state is divided over them, and its longest row."""

    devices: int = 1
    sharding: Sharding = "ddp"
    longest: int | None = None
    """Tokens of the longest row; ``data.max_len`` without it."""

    def __post_init__(self) -> None:
        if self.sharding not in SHARDINGS:
            raise UserError(
                f"plan: expected a sharding of {', '.join(SHARDINGS)}, found '{self.sharding}'"
                f"{did_you_mean(self.sharding, SHARDINGS, most=0)}."
            )
        if self.devices < 1:
            raise UserError(f"plan: expected at least 1 device, found {self.devices}.")


def parse_memory(text: str) -> float:
    """The number of bytes that ``80GiB``, ``80GB`` or ``80`` (GiB) stands for.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB|)\s*", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError(f"plan: expected a memory such as 80GiB, found '{text}'.")
    unit = {"": GIB, "gib": GIB, "gb": 1e9, "mib": 2**20, "mb": 1e6}[match[2].lower()]
    return float(match[1]) * unit
