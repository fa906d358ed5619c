"""A list of checks that are all made, whatever the others find, and tell their mistakes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stabledllm.config.checking import Read
from stabledllm.errors import Gathered

Checks = Iterator[tuple[str, Callable[[], object]]]
"""Checks, each with the keys that it reads, separated by blanks; a group stands for all its keys."""
DECODED = "decoding.length decoding.steps decoding.block"
WEIGHED = "objective"
OF_STREAMED_DATA = "data.streaming data.train data.train_rows data.few_shot data.cache"
SPLITS = ("train", "validation", "test")


def gather(gathered: Gathered, read: Read, checks_of: Callable[..., Checks]) -> None:
    """Gather what was wrong with settings as they were read, and what the checks of the others find."""
    gathered.sentences += read.sentences
    wrong = {key.removeprefix("base.") for key in read.wrong}
    if read.settings is None or "base" in wrong:
        return
    for keys, check in checks_of(read.settings):
        # A value that was wrong has been replaced by its default, which is nobody's mistake.
        if not any(_touches(key, one) for key in keys.split() for one in wrong):
            with gathered.check():
                check()


def _touches(key: str, wrong: str) -> bool:
    return f"{wrong}.".startswith(f"{key}.") or f"{key}.".startswith(f"{wrong}.")
