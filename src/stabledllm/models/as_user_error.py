"""Turning the exceptions that other libraries raise over a user's files into :class:`UserError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stabledllm.errors import UserError


@contextmanager
def as_user_error(expected: str, found: str = "found") -> Iterator[None]:
    """A context in which any exception becomes ``{expected}, {found}: {reason}``; a :class:`UserError` stays as it is.

    It is for calls that read a model's files: transformers, peft, tokenizers and jinja raise exceptions of any kind
    over a damaged one. It is not for this library's own computations, whose bugs must show.

    Raises:
        UserError: in place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{expected}, {found}: {reason}") from error
