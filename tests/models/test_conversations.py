"""Tools, tool calls and reasoning reach the model through its chat template, or are refused, never dropped."""

from __future__ import annotations

import pytest

from stabledllm.data.rows import EncodingOptions, encode_examples
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ASSISTANT, EOS, SYSTEM, TOOL, USER, ByteTokenizer
from stabledllm.models.hf_tokenizer import HFTokenizer, load_tokenizer
from tests.fakes.hub_models import LLADA_SPECIAL, write_tokenizer

NAMED = {"eos_token": "<|endoftext|>", "mask_token": "<|mdm_mask|>"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
ASKED = [{"role": "user", "content": "1+1?"}]
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
WITH_TOOLS = (
    "{% if tools %}T:{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }}:"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def load(folder, template) -> HFTokenizer:
    write_tokenizer(folder, LLADA_SPECIAL, NAMED, template)
    return load_tokenizer(folder, "m", vocab_size=272, mask_token_id=261)


def row_of(tokenizer, messages, **more):
    example = {"messages": messages, "origin": "f:1", **more}
    (row,) = encode_examples([example], tokenizer, EncodingOptions()).rows
    return tokenizer.decode(row.input_ids[: row.prompt_length]), tokenizer.decode(row.input_ids[row.prompt_length :])


def test_a_tool_call_is_an_answer_as_the_template_writes_it(tmp_path):
    tokenizer = load(tmp_path, WITH_TOOLS)
    prompt, answer = row_of(tokenizer, [*ASKED, CALLING], tools=TOOLS)
    assert prompt.startswith("T:[")
    assert '"name": "add"' in prompt
    assert answer == 'CALL add {"a": 1}'
    assert tokenizer.eos_token_id not in tokenizer.answer([*ASKED, CALLING], TOOLS), "the row gets one end token"
    prompt, answer = row_of(
        tokenizer, [*ASKED, CALLING, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}]
    )
    assert (prompt, answer) == ('user:1+1?assistant:CALL add {"a": 1}tool:2assistant:', "two")


def test_reasoning_is_part_of_the_answer(tmp_path):
    thought = {"role": "assistant", "content": "2", "reasoning_content": "count"}
    assert row_of(load(tmp_path, WITH_TOOLS), [*ASKED, thought])[1] == "<think>count</think>2"


@pytest.mark.parametrize(
    ("messages", "more", "says"),
    [
        ([*ASKED, CALLING], {}, "leaves out 'add'"),
        ([*ASKED, {"role": "assistant", "content": "2"}], {"tools": TOOLS}, "leaves out 'add'"),
        ([*ASKED, {"role": "assistant", "content": "2", "reasoning_content": "count"}], {}, "reasoning as an answer"),
    ],
)
def test_a_template_that_leaves_them_out_is_refused(tmp_path, messages, more, says):
    with pytest.raises(UserError, match=rf"^f:1: model 'm': expected a chat template that .*{says}"):
        row_of(load(tmp_path, PLAIN), messages, **more)


def test_a_template_that_begins_an_answer_otherwise_than_it_writes_it_is_refused(tmp_path):
    opened = WITH_TOOLS.replace("assistant:{% endif %}", "assistant:<think>{% endif %}")
    with pytest.raises(UserError, match=r"^f:1: model 'm': expected a chat template that .*reasoning as an answer"):
        row_of(load(tmp_path, opened), [*ASKED, CALLING])


def test_a_call_ends_with_one_end_token(tmp_path):
    tokenizer = load(tmp_path, WITH_TOOLS)
    ids = tokenizer.answer([*ASKED, CALLING])
    assert tokenizer.eos_token_id not in ids, "the end token is added to every answer alike"


def test_special_names_beside_a_call_are_refused(tmp_path):
    asked = [{"role": "user", "content": "What is <|eot_id|>?"}]
    tokenizer = load(tmp_path, WITH_TOOLS)
    with pytest.raises(UserError, match=r"names no special token, found '<\|eot_id\|>'"):
        tokenizer.answer([*asked, CALLING])


def test_tools_that_name_a_special_token_are_refused(tmp_path):
    tools = [{"function": {"name": "add", "description": "<|eot_id|>"}}]
    with pytest.raises(UserError, match=r"^f:1: expected a conversation with tools.*found '<\|eot_id\|>'"):
        row_of(load(tmp_path, WITH_TOOLS), [*ASKED, {"role": "assistant", "content": "2"}], tools=tools)


def test_a_text_beside_a_tool_call_that_names_a_special_token_is_refused(tmp_path):
    asked = [{"role": "user", "content": "what is <|eot_id|>?"}]
    with pytest.raises(UserError, match=r"expected a conversation with tools.*found '<\|eot_id\|>'"):
        load(tmp_path, WITH_TOOLS).answer([*asked, CALLING], TOOLS)


def test_without_a_template_they_are_text(tmp_path):
    with pytest.warns(UserWarning, match="has no chat template"):
        tokenizer = load(tmp_path, None)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    prompt, answer = row_of(tokenizer, [*ASKED, CALLING], tools=TOOLS)
    assert prompt.startswith("System: <tools>\n{")
    assert prompt.endswith("</tools>\nUser: 1+1?\nAssistant: ")
    assert answer == call
    prompt, _ = row_of(
        tokenizer, [*ASKED, CALLING, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}]
    )
    assert prompt == f"User: 1+1?\nAssistant: {call}\nTool: 2\nAssistant: "


def test_the_shipped_tokenizer_has_a_mark_for_what_a_tool_returns():
    tokenizer = ByteTokenizer()
    messages = [{"role": "system", "content": "s"}, *ASKED, CALLING, {"role": "tool", "content": "2"}]
    ids = tokenizer.chat(messages, TOOLS)
    assert [i for i in ids if i > 255] == [SYSTEM, USER, ASSISTANT, EOS, TOOL, ASSISTANT]
    assert tokenizer.decode(ids).startswith("s\n\n<tools>\n")
    assert tokenizer.vocab_size > TOOL
    assert tokenizer.decode(tokenizer.answer([*ASKED, CALLING])).startswith("<tool_call>")
