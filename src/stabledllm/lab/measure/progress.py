"""How a measurement tells how far it is; whoever starts it decides what is shown."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[int, int | None, str], None]
"""Called with the forward passes so far, all of them (None where unknown), and what is being measured."""


class Progress:
    """The forward passes of one measurement so far.

    Args:
        what: names the measurement. total: the forward passes that it will take, None where unknown.
        tell: called after every change.

    >>> progress = Progress("decompose", 8, tell=print)
    >>> progress.stage("A, B, C")
    0 8 decompose: A, B, C
    >>> progress.update(4)
    4 8 decompose: A, B, C
    """

    def __init__(self, what: str, total: int | None = None, tell: Tell | None = None):
        self.what, self.total, self.done = what, total, 0
        self._tell, self._stage = tell, ""

    def update(self, forwards: int) -> None:
        """Count more forward passes."""
        self.done += forwards
        self._say()

    def stage(self, name: str) -> None:
        """Begin the part of the measurement of that name."""
        self._stage = f": {name}"
        self._say()

    def _say(self) -> None:
        if self._tell:
            self._tell(self.done, self.total, self.what + self._stage)
