"""A model and its tokenizer as TRL takes them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import load_model

_TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|eos|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def load_for_trl(
    name: str, dtype: torch.dtype = torch.float32, **loading: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model by its name, and the tokenizer of transformers whose eos token ends a response.

    Args:
        name, dtype, loading: those of :func:`~stabledllm.models.loading.load_model`: ``tiny``, a folder, or a name on
            the hub.

    Raises:
        UserError: as that does.

    >>> model, tokenizer = load_for_trl("tiny")
    >>> tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)["input_ids"]
    [258, 104, 105, 259]
    """
    loaded = load_model(name, dtype, **loading)
    if isinstance(loaded.tokenizer, ByteTokenizer):
        return loaded.model, _of_bytes(loaded.tokenizer)
    tokenizer = loaded.tokenizer.of_transformers
    tokenizer.eos_token_id, tokenizer.pad_token_id = loaded.eos_id, loaded.pad_id
    return loaded.model, tokenizer


def _of_bytes(tokenizer: ByteTokenizer) -> PreTrainedTokenizerFast:
    """The byte tokenizer in transformers' form: the same ids for the same conversations."""
    letters = _letters()
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    names = [tokenizer.special_name(token) for token in range(256, tokenizer.vocab_size)]
    inner.add_special_tokens([AddedToken(f"<|{name[1:-1]}|>", special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|eos|>", pad_token="<|eos|>", mask_token="<|mask|>", chat_template=_TURNS
    )


def _letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: printable bytes are their own (GPT-2)."""
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]
