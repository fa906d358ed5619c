"""Block sizes over the steps of training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stabledllm.config.settings.values import MOST
from stabledllm.config.typed import Strict


class BlockScheduleSettings(Strict):
    """Block sizes that training goes through, such as LLaDA2's warm-up, stable phase and decay."""

    sizes: list[Annotated[int, Field(ge=1, le=MOST)]] = []
    """Sizes in their order; a size of at least the longest row makes it one block. The last one is ``block_size``."""
    steps: list[Annotated[int, Field(ge=1, le=10**9)]] = []
    """Optimizer steps of each size but the last, which stays to the end."""
