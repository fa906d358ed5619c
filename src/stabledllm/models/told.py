"""What other libraries raise over a user's files, told in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stabledllm.errors import UserError


@contextmanager
def told(expected: str, found: str = "found") -> Iterator[None]:
    """Within, whatever is raised becomes ``{expected}, {found}: {reason}``; a sentence of our own stays as it is.

    For calls that read a model's files: transformers, peft, tokenizers and jinja each raise exceptions of any kind
    over a damaged one. Never for computations of our own, whose bugs must show.

    Raises:
        UserError: in the place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{expected}, {found}: {reason}") from error
