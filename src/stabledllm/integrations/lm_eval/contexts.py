"""From the harness's strings to token ids: conversations stay conversations until the tokenizer sees them."""

from __future__ import annotations

import json

from stabledllm.errors import UserError

_KEY = "stabledllm_chat"


def write_chat(messages: list[dict]) -> str:
    """A conversation as the text that the harness carries about; its words can never pass for special tokens."""
    return json.dumps({_KEY: [{"role": m["role"], "content": m["content"]} for m in messages]}, ensure_ascii=False)


def read_chat(context: str) -> list[dict] | None:
    """The conversation of :func:`write_chat`; None for any other text.

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
    """Ids of a prompt: a conversation through the model's chat template, other text as it is.

    A conversation that ends with an assistant's turn is to be continued within it (the harness's ``gen_prefix``).
    """
    messages = read_chat(context)
    if messages is None:
        return tokenizer.encode(context)
    if messages[-1]["role"] == "assistant":
        return [*tokenizer.chat(messages[:-1]), *tokenizer.encode(messages[-1]["content"])]
    return tokenizer.chat(messages)


def encode_pair(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of what is to follow it.

    Plain text is encoded as one, blanks between the two counted to the continuation, and split where the prompt's own
    ids end: tokens across the border belong to the continuation. Where the prompt's ids are no beginning of the whole's
    each is encoded by itself.

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
