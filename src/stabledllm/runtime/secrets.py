"""Hides secrets in everything that is written and shown: tokens, keys and passwords in settings, logins in URLs."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(hidden)"
_WORDS = {"key", "apikey", "secret", "secrets", "password", "passwd", "passphrase", "pwd", "credential", "credentials"}
_TEXT_TOKENS = {
    "end", "eos", "bos", "pad", "mask", "unk", "sep", "cls", "image", "video", "audio", "boi", "eoi", "soi", "start",
    "stop", "begin", "class", "special", "next", "first", "last", "prefix", "suffix", "middle", "system", "user",
    "assistant", "delimiter",
}  # fmt: skip
"""Words before ``_token`` in names of text tokens such as ``eos_token``, which are no secrets."""
_SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|[Bb]earer +[\w.~+/=-]{8,})"
)
_LOGIN = re.compile(r"(?<=://)[^/\s@?#]+@")
_ASSIGNED = re.compile(r"(?<![\w-])([A-Za-z][\w-]{1,60})=([^\s,;&\"'}]+)")


def hidden(value: Any, name: str = "") -> Any:
    """The value with ``(hidden)`` in the place of every secret, at every level of its mappings and lists.

    Args:
        name: key of the value; under one such as ``hub_token``, ``api_key`` or ``password`` any text is hidden.
    """
    if isinstance(value, dict):
        return {key: hidden(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(inner, name) for inner in value]
    if not isinstance(value, str) or not value:
        return value
    return HIDDEN if is_secret(name) else without_secrets(value)


def is_secret(name: str) -> bool:
    """Whether a key of this name holds a secret."""
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2]).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", last) if word]
    if not words:
        return False
    if words[-1] == "token":
        return len(words) == 1 or words[-2] not in _TEXT_TOKENS
    return bool(_WORDS & set(words))


def without_secrets(text: str) -> str:
    """The text with its tokens, logins and assignments of secrets (``API_KEY=...``) hidden."""
    text = _SHAPES.sub(HIDDEN, _LOGIN.sub(f"{HIDDEN}@", text))
    return _ASSIGNED.sub(_without_assigned, text)


def _without_assigned(match: re.Match) -> str:
    name, value = match.groups()
    return f"{name}={HIDDEN if _assigned_secret(name) else _ASSIGNED.sub(_without_assigned, value)}"


def _assigned_secret(name: str) -> bool:
    # KEY=VALUE is how help texts write settings; it assigns no secret.
    return name.lower() != "key" and is_secret(name)
