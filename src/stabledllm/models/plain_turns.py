"""Tool calls, tools and reasoning as plain text, for tokenizers without a chat template of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

MORE = {"assistant": ("tool_calls", "reasoning_content"), "tool": ("name", "tool_call_id")}
"""The keys of a message that a chat template gets besides its role and content."""


def shown_keys(message: dict) -> dict:
    """The message without keys that are no part of the conversation, such as ids and flags."""
    more = {key: message[key] for key in MORE.get(message["role"], ()) if message.get(key)}
    return {"role": message["role"], "content": message["content"], **more}


def has_more(message: dict) -> bool:
    """Whether an assistant's message is more than its content."""
    return any(message.get(key) for key in MORE["assistant"])


def answer_text(message: dict) -> str:
    """An assistant's message as text: reasoning and tool calls in tags, as Qwen's and Hermes' templates write them."""
    thought = message.get("reasoning_content")
    parts = [f"<think>\n{thought}\n</think>\n"] if thought else []
    parts += [message["content"]] if message["content"] else []
    parts += [f"<tool_call>\n{_json(call['function'])}\n</tool_call>" for call in message.get("tool_calls") or ()]
    return "\n".join(parts)


def as_plain(messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[dict]:
    """The messages with nothing but role and content; the tools' definitions end the system turn."""
    plain = [
        {"role": m["role"], "content": answer_text(m) if m["role"] == "assistant" else m["content"]} for m in messages
    ]
    if not tools:
        return plain
    written = "<tools>\n" + "\n".join(map(_json, tools)) + "\n</tools>"
    if plain and plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{written}"}, *plain[1:]]
    return [{"role": "system", "content": written}, *plain]


def texts_in(value: Any) -> Iterable[str]:
    """All texts in a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (str(key), *texts_in(each))
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)


def names_called(messages: Sequence[dict]) -> list[str]:
    """The names of the functions that the messages call."""
    return [call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
