"""Reading data in which words spell special tokens, such as ``<|eot_id|>`` or ``[MASK]``: there they are only text.

A chat template writes names of special tokens, and the data may hold the same names. They are told apart by comparing
two renderings: one of the conversation as it is, and one in which every such name in the data is changed in one
character. Only names that stand in both were written by the template. The tokenizer then reads the whole text at once,
so that everything else is tokenized as usual, but its special tokens have other names, which occur nowhere in the text
and are put where the template wrote the old ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from stabledllm.errors import UserError

_MARK = "\ue000"
"""A private-use character of Unicode, repeated until a text does not contain it, then put after each special token."""


class SpecialText:
    """A reader of texts in which some special tokens are written on purpose and others are only named.

    Args:
        tokenizer: transformers' tokenizer. special: ids of the tokens that data cannot write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: Iterable[int]):
        self._tokenizer = tokenizer
        self._names = {name: i for i in special if (name := tokenizer.convert_ids_to_tokens(i))}
        # The longest first, as the tokenizer itself prefers where two begin at one place.
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) or r"(?!)")
        self._renamed: dict[str, Tokenizer] = {}

    def names(self, text: str) -> list[str]:
        """The special tokens that the text names."""
        return self._pattern.findall(text)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which no word counts as a special token."""
        return self._read(text, [])

    def chat(self, messages: Sequence[dict], render: Callable[[Sequence[dict]], str]) -> list[int]:
        """Ids of a rendered conversation, in which only the template's own special tokens are tokens.

        Raises:
            UserError: a template that does more with the messages than write them down.
        """
        text = render(messages)
        harmless = render([message | {"content": self._harmless(message["content"])} for message in messages])
        own = [match.span() for match in self._pattern.finditer(harmless)]
        if len(text) != len(harmless) or any(text[a:b] != harmless[a:b] for a, b in own):
            named = next(name for message in messages for name in self.names(message["content"]))
            raise UserError(
                f"expected a conversation without {named!r}, since the model's chat template changes a text by it."
            )
        return self._read(text, own)

    def _harmless(self, text: str) -> str:
        """The text with one character of every special token's name replaced; as long as it was."""
        while match := self._pattern.search(text):
            text = text[: match.start()] + _other(match[0][0]) + text[match.start() + 1 :]
        return text

    def _read(self, text: str, written: Sequence[tuple[int, int]]) -> list[int]:
        """Ids of a text in which the spans ``written`` are special tokens and nothing else is."""
        mark = _MARK
        while mark in text:
            mark += _MARK
        parts, end = [], 0
        for a, b in written:
            parts += [text[end:a], text[a:b] + mark]
            end = b
        renamed = self._with(mark)
        return renamed.encode("".join([*parts, text[end:]]), add_special_tokens=False).ids

    def _with(self, mark: str) -> Tokenizer:
        if mark not in self._renamed:
            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            if not isinstance(backend, Tokenizer):
                kind = type(self._tokenizer).__name__
                raise UserError(
                    f"expected a text that names no special token, since the model's {kind} cannot write their names "
                    f"as text, found one."
                )
            self._renamed[mark] = _renamed(backend, self._names, mark)
        return self._renamed[mark]


def _other(character: str) -> str:
    return "x" if character != "x" else "y"


def _renamed(backend: Tokenizer, names: dict[str, int], mark: str) -> Tokenizer:
    """The same tokenizer with ``mark`` after the special tokens' names; the ids stay."""
    parts = json.loads(backend.to_str())
    model = parts["model"]
    for token in parts["added_tokens"]:
        if token["content"] in names:
            token |= {"content": token["content"] + mark, "special": True}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name + mark if name in names else name: i for name, i in model["vocab"].items()}
    else:
        model["vocab"] = [[name + mark if name in names else name, score] for name, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] += mark
    # These parts name tokens and are not needed: nothing is put around the text, and nothing is padded.
    parts |= {"post_processor": None, "truncation": None, "padding": None}
    renamed = Tokenizer.from_str(json.dumps(parts))
    for name, i in names.items():
        if renamed.token_to_id(name + mark) != i:
            raise UserError(
                f"expected a text without {name!r}, since the model's tokenizer cannot be read with another name for "
                f"that token, found one."
            )
    return renamed
