"""Tells prompts from settings among the words of ``stabledllm generate``: a prompt may hold ``=``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from stabledllm.cli.arguments import Typed, read_arguments
from stabledllm.cli.grammar import GRAMMARS
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text

_LIKE_A_KEY = re.compile(r"[a-z][a-z_]*(\.[a-z_]+)*=\S*")


def read_prompted(
    words: Sequence[str], literal: Sequence[str], config: str | None, more: Sequence[str]
) -> tuple[Typed, list[str]]:
    """The settings and the prompts: a word is a setting if it begins with a key of ``generate`` and ``=``.

    Args:
        literal: words that are prompts whatever they look like. config: the recipe of ``--config``. more: the settings
            of ``--set``.

    Raises:
        UserError: a word that looks like a setting whose key is misspelt.
    """
    from stabledllm.config.instead import OPTIONS

    grammar = GRAMMARS["generate"]
    settings, prompts = [], []
    for word in words:
        key = word.partition("=")[0]
        known = "=" in word and (grammar.key(key) is not None or grammar.short_for(key) is not None)
        (settings if known else prompts).append(word)
        if not known and key in OPTIONS and _LIKE_A_KEY.fullmatch(word):
            raise UserError(
                f"generate: unknown key '{key}'; it is an option of the command: write {OPTIONS[key]}, or -- before it "
                f"if it is a prompt."
            )
        names = [*grammar.keys, *grammar.shorts]
        if (
            not known
            and _LIKE_A_KEY.fullmatch(word)
            and (near := difflib.get_close_matches(key, names, n=1, cutoff=0.75))
        ):
            raise UserError(
                f"generate: unknown key '{plain_text(key)}' (did you mean '{near[0]}'?); write -- before it if it is a "
                f"prompt."
            )
    return read_arguments("generate", settings, config, more), [*prompts, *literal]


def seen_as_images(overrides: Sequence[str]) -> list[str]:
    """The settings with those of decoding that drawing has as well, such as ``steps``, as those of drawing."""
    from stabledllm.config.settings import ImageDecodingSettings

    shared = tuple(f"decoding.{name}=" for name in ImageDecodingSettings.model_fields)
    return [f"image_{override}" if override.startswith(shared) else override for override in overrides]
