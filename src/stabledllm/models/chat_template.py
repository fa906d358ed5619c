"""Running a checkpoint's chat template, an untrusted program, in transformers' sandbox and within further bounds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from jinja2 import Environment
from transformers import PreTrainedTokenizerBase

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error

_STEPS = 1_000_000
"""Lines of a template that one conversation may take; a turn takes some dozens."""
_SECONDS = 20.0
_BYTES = 2**28
"""Memory that a template may ask for when it is first tried."""
_CHARACTERS = 1_000_000
"""The most characters of a template, and of what it writes for a conversation of a few words."""
_FILENAME = "<template>"
_QUESTION = [{"role": "user", "content": "question"}]


def check_template(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Check that the tokenizer's template, if it has one, can be read, ends, and accepts a question.

    Raises:
        UserError: it cannot be read, does not end, refuses the question, or writes too much.
    """
    template = tokenizer.chat_template
    if template is None:
        return
    texts = template.values() if isinstance(template, dict) else [template]
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= _CHARACTERS:
            raise UserError(f"{what}: expected a chat template of 1 to {_CHARACTERS} characters, found another.")
        with as_user_error(f"{what}: expected a chat template that can be read"):
            # A power is the one operation whose single step can take hours; jinja would compute it while it parses.
            if any(kind == "operator" and token == "**" for _, kind, token in Environment().lex(text)):
                raise UserError(f"{what}: expected a chat template without powers (**), found one.")
    render_short(tokenizer, _QUESTION, what, ready=True)


def render_short(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict], what: str, *, ready: bool = False
) -> str:
    """The text of a short conversation; ``ready``: up to where the assistant's answer begins.

    Raises:
        UserError: a template that fails, does not end or writes too much.
    """
    with bounded(what), _little_memory():
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ready)
    if not isinstance(text, str) or len(text) > _CHARACTERS:
        raise UserError(f"{what}: expected a chat template that writes a short text for a question, found more.")
    return text


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """A context in which a chat template may run a million lines and 20 seconds.

    Raises:
        UserError: it took more, or raised any other exception.
    """
    steps, end, before = 0, time.monotonic() + _SECONDS, sys.gettrace()

    def line(frame: FrameType, event: str, _: object):
        nonlocal steps
        steps += 1
        if steps > _STEPS or (not steps % 64 and time.monotonic() > end):
            raise UserError(f"{what}: expected a chat template that ends, found one that runs on at step {steps:,}.")
        return line

    with as_user_error(f"{what}: expected a conversation that its chat template takes"):
        sys.settrace(lambda frame, event, _: line if frame.f_code.co_filename == _FILENAME else None)
        try:
            yield
        finally:
            sys.settrace(before)


@contextmanager
def _little_memory() -> Iterator[None]:
    """A context in which memory grows by at most 256 MiB (on Linux): one multiplication could ask for all of it."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    bound = now + _BYTES if limits[0] == resource.RLIM_INFINITY else min(limits[0], now + _BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (bound, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
