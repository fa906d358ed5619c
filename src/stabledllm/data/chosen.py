"""The examples that a run uses, and what is known of them without reading them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from stabledllm.tasks.examples import Examples

if TYPE_CHECKING:
    from stabledllm.data.row_cache import RowCache


@dataclass(frozen=True)
class Chosen:
    """The examples of each split as a run uses them, before they are tokenized; ``digests`` identify their content.

    ``read`` chooses them again where all else comes from a cache. ``cache``: where their rows are stored, if anywhere.
    """

    test: list[dict]
    notes: list[str]
    digests: dict[str, str]
    read: Callable[[], dict[str, Examples]]
    cache: RowCache | None = None

    @cached_property
    def splits(self) -> dict[str, Examples]:
        """The examples of ``train``, ``validation`` and ``test``, or of those there are."""
        return self.read()
