"""The tools of a conversation reach the prompt that its answer is decoded from, batch by batch and after a kill."""

from __future__ import annotations

from stabledllm.decoding import DecodingOptions
from stabledllm.evaluation.completing import complete, complete_resumably
from stabledllm.evaluation.journal import Journal
from stabledllm.models.loading import load_model

TOOLS = [{"type": "function", "function": {"name": "add"}}]


def test_every_prompt_has_the_tools_of_its_own_conversation(tmp_path, monkeypatch):
    loaded, seen = load_model("tiny"), []
    chat = loaded.tokenizer.chat
    monkeypatch.setattr(loaded.tokenizer, "chat", lambda m, tools=(): seen.append(list(tools)) or chat(m, tools))
    asked, tools = [[{"role": "user", "content": f"{i}+1"}] for i in range(3)], [(), TOOLS, ()]
    options = DecodingOptions(length=2, steps=1, block=2)
    whole = complete(loaded, asked, options, 3, tools=tools)
    assert seen == [[], TOOLS, []]
    seen.clear()
    assert complete_resumably(loaded, asked, options, 2, Journal(tmp_path, "tools", {}), tools=tools) == whole
    assert seen == [[], TOOLS, []]
