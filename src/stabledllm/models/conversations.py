"""Conversations as ids through a chat template, with tools, tool calls and reasoning, or ours without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from stabledllm.errors import UserError
from stabledllm.models.chat_template import bounded
from stabledllm.models.plain_turns import answer_text, as_plain, has_more, names_called, shown_keys, texts_in
from stabledllm.models.special_text import SpecialText


class Conversations:
    """Turns conversations into ids.

    Args:
        special_text: reads the names of special tokens in messages as text. encode: ids of a text by itself.
        name: the model's name, for errors.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        special_text: SpecialText,
        encode: Callable[[str], list[int]],
        name: str,
    ):
        self._tokenizer, self._special_text, self._encode, self._name = tokenizer, special_text, encode, name

    def before_answer(self, messages: Sequence[dict], tools: Sequence[dict]) -> list[int]:
        """Ids of the messages, up to where the assistant's answer begins.

        Raises:
            UserError: a template that refuses them, or leaves tools or tool calls out.
        """
        if self._tokenizer.chat_template is None:
            lines = [f"{m['role'].capitalize()}: {m['content']}\n" for m in as_plain(messages, tools)]
            return self._encode("".join(lines) + "Assistant: ")
        messages = self._shown(messages, tools)
        render = partial(self._render, tools=tools)
        if any(self._special_text.names(m["content"]) for m in messages):
            return self._special_text.chat(messages, render)
        return self._read(render(messages))

    def answer(self, messages: Sequence[dict], tools: Sequence[dict], end_token: int) -> list[int]:
        """Ids of the last message, the assistant's, without the end token that the template writes behind it.

        Tool calls and reasoning are written by the chat template; a message that is only text is encoded as it is.

        Raises:
            UserError: a template that does not write them behind the text before the answer.
        """
        if not has_more(messages[-1]):
            return self._encode(messages[-1]["content"])
        if self._tokenizer.chat_template is None:
            return self._encode(answer_text(messages[-1]))
        messages = self._shown(messages, tools)
        self._refuse_special(m["content"] for m in messages)
        before = self._render(messages[:-1], tools=tools)
        whole = self._render(messages, tools=tools, ready=False)
        answer, end = whole.removeprefix(before), self._tokenizer.convert_ids_to_tokens(end_token)
        held = [(messages[-1].get("reasoning_content") or "").strip(), *names_called(messages[-1:])]
        if answer == whole or any(text not in answer for text in held):
            raise UserError(
                f"model '{self._name}': expected a chat template that writes tool calls and reasoning as an answer, "
                f"found one that does not."
            )
        return self._read(answer.rpartition(end)[0] if end in answer else answer.rstrip("\n"))

    def _shown(self, messages: Sequence[dict], tools: Sequence[dict]) -> list[dict]:
        """The messages as the chat template gets them."""
        shown = [shown_keys(m) for m in messages]
        self._refuse_special(texts_in([*tools, *({**m, "content": ""} for m in shown)]))
        return shown

    def _refuse_special(self, texts) -> None:
        if named := next((name for text in texts for name in self._special_text.names(text)), None):
            raise UserError(
                f"expected a conversation with tools, tool calls or reasoning that names no special token, "
                f"found {named!r}."
            )

    def _render(self, messages: Sequence[dict], *, tools: Sequence[dict] = (), ready: bool = True) -> str:
        """The conversation as the chat template writes it; ``ready``: up to where the assistant's answer begins."""
        options = {"tools": list(tools)} if tools else {}
        with bounded(f"model '{self._name}'"):
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=ready, tokenize=False, **options)
        defined = [(tool.get("function") or tool).get("name", "") for tool in tools]
        for name in (*names_called(messages), *defined):
            if str(name) not in text:
                raise UserError(
                    f"model '{self._name}': expected a chat template that writes tools and tool calls, found one that "
                    f"leaves out {name!r}."
                )
        return text

    def _read(self, rendered: str) -> list[int]:
        return self._tokenizer.encode(rendered, add_special_tokens=False)
