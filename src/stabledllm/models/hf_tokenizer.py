"""A checkpoint's own tokenizer with the interface of :class:`~stabledllm.models.byte_tokenizer.ByteTokenizer`."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.chat_template import check_template, render_short
from stabledllm.models.conversations import Conversations
from stabledllm.models.image_tokens import ImageTokens
from stabledllm.models.named_tokens import check_named_tokens, mask_of, refuse_text_as_mask
from stabledllm.models.pretrained import read_pretrained
from stabledllm.models.special_text import SpecialText
from stabledllm.models.tokenizer_identity import identity_of
from stabledllm.runtime.files import read_json, write_json

# Files beside the weights that belong to the model; copied unchanged, so that the original code finds them.
_COMPANIONS = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model", "*.jinja", "chat_template.json", "generation_config.json",
    "configuration*.py", "modeling*.py", "tokenization*.py", "generation*.py",
)  # fmt: skip
_CHOICES = "stabledllm_tokenizer.json"
_MARKER = "ANSWER"


class HFTokenizer:
    """A tokenizer that turns texts into ids and back, and conversations into ids through the model's chat template.

    The names of special tokens in texts and conversations are read as text: data cannot write a mask or an end token.

    Args:
        tokenizer: transformers' tokenizer.
        vocab_size: rows of the model's embedding; every id is below it.
        mask_token_id: the one in the model's config; None for the tokenizer's own.
        end_token: the token that ends a response; None for the one that the chat template writes after an
            assistant's turn (LLaDA ``<|eot_id|>``, Dream and Qwen ``<|im_end|>``), else the tokenizer's eos token.
        folder: the checkpoint, whose files :meth:`save_pretrained` copies.
        mask_given: whether a user chose the mask token, which then must be none that texts have.

    Raises:
        UserError: a tokenizer and an embedding or a mask token that disagree, no mask token, no end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocab_size: int,
        mask_token_id: int | None,
        name: str,
        end_token: str | None = None,
        folder: Path | None = None,
        needs_mask: bool = True,
        mask_given: bool = False,
    ):
        self._tokenizer, self._folder, self._name, self._end_token = tokenizer, folder, name, end_token
        self._image_config: PretrainedConfig | None = None
        self._image_tokens: ImageTokens | None = None
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special |= set(tokenizer.all_special_ids)
        self.vocab_size = vocab_size
        self._check_sizes()
        check_template(tokenizer, f"model '{name}'")
        self.mask_token_id = mask_of(tokenizer, mask_token_id, vocab_size, f"model '{name}'", needed=needs_mask)
        if mask_given:
            refuse_text_as_mask(tokenizer, mask_token_id, f"model '{name}'")
        self._bytes = _byte_alphabet() if _is_byte_level(tokenizer) else None
        if tokenizer.chat_template is None:
            warnings.warn(
                f"model '{name}': its tokenizer has no chat template; turns are written as 'User: ...' and "
                f"'Assistant: ...' on lines of their own.",
                stacklevel=2,
            )
        self.eos_token_id = self._end()
        pad = tokenizer.pad_token_id
        self.pad_token_id = self.eos_token_id if pad is None else pad
        # Mask, end and padding tokens are not text, even where the tokenizer's files do not call them special.
        named = {self.eos_token_id, self.pad_token_id} & tokenizer.added_tokens_decoder.keys()
        self._special |= named | ({self.mask_token_id} - {None})
        self._unwritable = self._special - {tokenizer.unk_token_id}
        self._special_text = SpecialText(tokenizer, self._special)
        self._conversations = Conversations(tokenizer, self._special_text, self.encode, name)

    @property
    def of_transformers(self) -> PreTrainedTokenizerBase:
        """The tokenizer that this one asks, for other trainers; to it a special token's name in a text is the token."""
        return self._tokenizer

    @property
    def chat_template(self) -> str | None:
        """The template that conversations are written by; None without one."""
        return self._tokenizer.chat_template

    @property
    def sequence_end_id(self) -> int:
        """The end-of-sequence token that the files name; the one that ends a response where they name none."""
        own = self._tokenizer.eos_token_id
        return self.eos_token_id if own is None else own

    @property
    def padding_id(self) -> int | None:
        """The token that only pads rows; None where the padding token ends texts as well."""
        ends = {self.eos_token_id, self._tokenizer.eos_token_id, self._tokenizer.sep_token_id}
        return None if self.pad_token_id in ends else self.pad_token_id

    @cached_property
    def identity(self) -> str | None:
        """A digest of all that decides the ids that a text gets; None where its code is not known."""
        choices = [self.vocab_size, self.mask_token_id, self.eos_token_id, self.pad_token_id, self.padding_id]
        return identity_of(self._tokenizer, choices)

    def take_image_config(self, config: PretrainedConfig) -> None:
        """Set the configuration of a model with image tokens, which :attr:`image_tokens` needs."""
        self._image_config = config

    @property
    def image_tokens(self) -> ImageTokens | None:
        """The special tokens around images and the first image token; None where the model has none.

        Raises:
            UserError: a model that should have them without the special tokens or the codebook's size.
        """
        if self._image_tokens is None and self._image_config is not None:
            self._image_tokens = ImageTokens.of(self._tokenizer, self._image_config, self._name)
        return self._image_tokens

    def unknown_words(self, text: str) -> list[str]:
        """Words of the text that the vocabulary lacks; there are none in a vocabulary of bytes."""
        unknown = self._tokenizer.unk_token_id
        if unknown is None:
            return []
        return [word for word in text.split() if unknown in self.encode(word)]

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without special tokens: a special token's name in it is text."""
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        # transformers still finds the special tokens whose names are in the vocabulary itself.
        return ids if self._unwritable.isdisjoint(ids) else self._special_text.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def special_name(self, token: int) -> str | None:
        """The name of a special token, such as ``<|eot_id|>``; None for a token of text."""
        if token in self._special or token >= len(self._tokenizer):
            return self._tokenizer.convert_ids_to_tokens(token) or f"<{token}>"
        return None

    def piece(self, token: int) -> str:
        """The text of one token for matching; in a vocabulary of bytes, one character per byte."""
        if token in self._special:
            return ""
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        if self._bytes is not None:
            return "".join(self._bytes.get(c) or _latin(c) for c in piece)
        return piece.replace("\u2581", " ").removeprefix("##")

    def matchable(self, text: str) -> str:
        """The text as its tokens' pieces spell it."""
        if self._bytes is not None:
            return _latin(text)
        return "".join(self.piece(token) for token in self.encode(text))

    def chat(self, messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[int]:
        """Ids of a conversation that ends with another's turn, ready for the assistant's answer.

        Raises:
            UserError: a conversation that the chat template refuses, or writes without its tools or tool calls.
        """
        return self._conversations.before_answer(messages, tools)

    def answer(self, messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[int]:
        """Ids of the last message of a conversation, the assistant's, without an end token.

        Raises:
            UserError: a chat template that does not write its tool calls or reasoning after what :meth:`chat` gives.
        """
        return self._conversations.answer(messages, tools, self.eos_token_id)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the published files that lie beside the weights, unchanged."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._end_token is not None:
            write_json(folder / _CHOICES, {"end_token": self._end_token})
        for pattern in _COMPANIONS if self._folder else ():
            for file in sorted(self._folder.glob(pattern)):
                if file.resolve() != (folder / file.name).resolve():
                    shutil.copyfile(file, folder / file.name)

    def _check_sizes(self) -> None:
        largest = max(self._tokenizer.get_vocab().values(), default=0)
        if largest >= self.vocab_size:
            raise UserError(
                f"model '{self._name}': expected token ids below the embedding's {self.vocab_size} rows, "
                f"found id {largest} in the tokenizer."
            )

    def _end(self) -> int:
        if self._end_token is not None:
            end = self._tokenizer.get_vocab().get(self._end_token)
            if end is None:
                raise UserError(f"end_token: expected a token of the model '{self._name}', found {self._end_token!r}.")
            return end
        closing = self._closing_token()
        if closing is not None:
            return closing
        for fallback in (self._tokenizer.eos_token_id, self._tokenizer.sep_token_id):
            if fallback is not None:
                return fallback
        raise UserError(f"model '{self._name}': expected an end token in the tokenizer, found none; set end_token.")

    def _closing_token(self) -> int | None:
        """The special token that the chat template writes right after an assistant's text."""
        if self._tokenizer.chat_template is None:
            return None
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _MARKER}]
        text = render_short(self._tokenizer, turns, f"model '{self._name}'")
        tail = self._tokenizer.encode(text.rpartition(_MARKER)[2], add_special_tokens=False)
        return tail[0] if tail and tail[0] in self._special else None


def load_tokenizer(
    folder: Path,
    name: str,
    *,
    vocab_size: int,
    mask_token_id: int | None,
    end_token: str | None = None,
    trust_remote_code: bool = False,
    needs_mask: bool = True,
    mask_given: bool = False,
) -> HFTokenizer:
    """Load the tokenizer in a checkpoint's folder; its own code runs only with ``trust_remote_code``.

    Raises:
        UserError: no tokenizer, or one that does not fit the model.
    """
    if end_token is None and (folder / _CHOICES).is_file():
        end_token = read_json(folder / _CHOICES).get("end_token")
    with as_user_error(f"model '{name}': expected a tokenizer in {folder}", "found none that loads"):
        with warnings.catch_warnings():
            # transformers reads the model's config too, and comments on keys that only its own models have.
            warnings.simplefilter("ignore", FutureWarning)
            tokenizer = read_tokenizer(folder, trust_remote_code)
        check_named_tokens(tokenizer, folder, f"model '{name}'")
        return HFTokenizer(
            tokenizer,
            vocab_size=vocab_size,
            mask_token_id=mask_token_id,
            name=name,
            end_token=end_token,
            folder=folder,
            needs_mask=needs_mask,
            mask_given=mask_given,
        )


def read_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """transformers' tokenizer. The files decide its class, not the config: Dream's names one in remote code."""
    if (folder / "tokenizer.json").is_file():
        return read_pretrained(PreTrainedTokenizerFast, folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return read_pretrained(Qwen2Tokenizer, folder)
    return read_pretrained(AutoTokenizer, folder, trust_remote_code=trust_remote_code)


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in json.dumps(json.loads(backend.to_str()).get("decoder"))


def _byte_alphabet() -> dict[str, str]:
    """A map from byte-level vocabularies' characters for bytes (Radford et al., 2019) to the bytes' own characters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in plain)
    return {chr(b): chr(b) for b in plain} | {chr(256 + n): chr(b) for n, b in enumerate(others)}


def _latin(text: str) -> str:
    """One character for each byte of the text's UTF-8."""
    return text.encode("utf-8").decode("latin-1")
