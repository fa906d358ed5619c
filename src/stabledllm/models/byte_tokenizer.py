"""Byte-level tokenizer of the reference model: ids 0 to 255 are bytes, then the special tokens."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.models.plain_turns import answer_text, as_plain

MASK, EOS, USER, ASSISTANT, SYSTEM, TOOL = 256, 257, 258, 259, 260, 261


class ByteTokenizer:
    """A tokenizer of UTF-8 bytes. Every text has exactly one encoding; ``decode(encode(text)) == text``.

    The chat template is ``<user> text <assistant>``, with ``<system> text`` before it where given, and ``<tool> text``
    for what a tool returned.
    """

    vocab_size = 264
    mask_token_id = MASK
    eos_token_id = sequence_end_id = EOS
    pad_token_id = EOS
    image_tokens = None
    padding_id = None
    identity = "bytes"
    """What decides the ids that a text gets."""

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes of the text, without special tokens."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def special_name(self, token: int) -> str | None:
        """The name of a special token, such as ``<user>``; None for a byte."""
        names = {MASK: "mask", EOS: "eos", USER: "user", ASSISTANT: "assistant", SYSTEM: "system", TOOL: "tool"}
        return None if token < 256 else f"<{names.get(token, token)}>"

    def piece(self, token: int) -> str:
        """The text of one token for matching: one character per byte, nothing for special tokens."""
        return chr(token) if token < 256 else ""

    def matchable(self, text: str) -> str:
        """The text as its tokens' pieces spell it, so that a search in them finds it whatever its alphabet."""
        return "".join(self.piece(token) for token in self.encode(text))

    def chat(self, messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[int]:
        """Ids of a conversation that ends with another's turn, ready for the assistant's answer."""
        roles = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM, "tool": TOOL}
        ids: list[int] = []
        for message in as_plain(messages, tools):
            ids += [roles[message["role"]], *self.encode(message["content"])]
            if message["role"] == "assistant":
                ids.append(EOS)
        return [*ids, ASSISTANT]

    def answer(self, messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[int]:
        """Ids of the last message of a conversation, the assistant's, without an end token."""
        return self.encode(answer_text(messages[-1]))

    def save_pretrained(self, folder: object) -> None:
        """Write nothing: this tokenizer is part of the library."""
