"""Encoding the harness's strings: conversations stay conversations until the tokenizer gets them."""

from __future__ import annotations

import json

from stabledllm.errors import UserError

_KEY = "stabledllm_chat"


def write_chat(messages: list[dict]) -> str:
    """A conversation as text that the harness can carry; its words can never be taken for special tokens."""
    return json.dumps({_KEY: [{"role": m["role"], "content": m["content"]} for m in messages]}, ensure_ascii=False)


def read_chat(context: str) -> list[dict] | None:
    """The conversation that :func:`write_chat` wrote; None for any other text.

    Raises:
        UserError: text after the conversation, which the harness never puts there.
    """
    if not context.startswith(f'{{"{_KEY}": '):
        return None
    try:
        return json.loads(context)[_KEY]
    except ValueError:
        raise UserError(f"lm_eval: expected a conversation, found text after it: {context[-60:]!r}.") from None


def encode_context(tokenizer, context: str) -> list[int]:
    """The ids of a prompt: a conversation goes through the model's chat template, other text is encoded as it is.

    A conversation that ends with an assistant's turn is to be continued within it (the harness's ``gen_prefix``).
    """
    messages = read_chat(context)
    if messages is None:
        return tokenizer.encode(context)
    if messages[-1]["role"] == "assistant":
        return [*tokenizer.chat(messages[:-1]), *tokenizer.encode(messages[-1]["content"])]
    return tokenizer.chat(messages)


def encode_pair(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of its continuation.

    Plain text is encoded as a whole and split where the prompt's own ids end; blanks between the two count to the
    continuation, and so do tokens across the border. Where the whole does not begin with the prompt's ids, each part
    is encoded by itself.

    Raises:
        UserError: a continuation without tokens.
    """
    prompt = encode_context(tokenizer, context)
    if read_chat(context) is None:
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        prompt, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return prompt, whole[len(prompt) :]
    following = tokenizer.encode(continuation)
    if not following:
        raise UserError(f"lm_eval: expected a continuation of at least one token, found {continuation!r}.")
    return prompt, following
