"""Rows of every format that people bring become the same conversations; wrong ones are refused in one sentence."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.config.settings.data import FormatName
from stabledllm.data.formats import FORMATS, FormatOptions
from stabledllm.data.rows import EncodingOptions, collate, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.data.token_rows import RowsBuilder
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer

ASK, REPLY = "Name a prime above 10.", "11 is one."
SYSTEM = "Answer briefly."


def turn(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


PAIR = [turn("user", ASK), turn("assistant", REPLY)]
LONGER = [turn("user", "Hi."), turn("assistant", "Hello."), *PAIR]
CALL = {"type": "function", "function": {"name": "is_prime", "arguments": {"n": 11}}}
TOOLS = [{"type": "function", "function": {"name": "is_prime", "description": "d", "parameters": {"type": "object"}}}]

# name: (row, its format, the conversations it makes)
GOOD = {
    "messages": ({"messages": PAIR}, "messages", [PAIR]),
    "messages, the last turn": ({"messages": LONGER}, "messages", [LONGER]),
    "messages with a system turn": (
        {"messages": [turn("system", SYSTEM), *PAIR]}, "messages", [[turn("system", SYSTEM), *PAIR]]
    ),
    "messages with an empty system turn": ({"messages": [turn("system", ""), *PAIR]}, "messages", [PAIR]),
    "content parts": (
        {"messages": [turn("user", [{"type": "text", "text": "Name a prime "}, {"type": "text", "text": "above 10."}]),
                      turn("assistant", REPLY)]},
        "messages", [PAIR],
    ),
    "train flags": (
        {"messages": [turn("user", "Hi."), turn("assistant", "Hello.", train=True), turn("user", ASK),
                      turn("assistant", REPLY, train=False)]},
        "messages", [[turn("user", "Hi."), turn("assistant", "Hello.", train=True)]],
    ),
    "train flags of two turns": (
        {"messages": [turn("user", "Hi."), turn("assistant", "Hello.", train=True), *PAIR, turn("user", "Thanks."),
                      turn("assistant", "Bye.", train=False)]},
        "messages",
        [[turn("user", "Hi."), turn("assistant", "Hello.", train=True)],
         [turn("user", "Hi."), turn("assistant", "Hello.", train=True), *PAIR]],
    ),
    "weights as OpenAI has them": (
        {"messages": [turn("user", "Hi."), turn("assistant", "Hello.", weight=0), *PAIR]},
        "messages", [[turn("user", "Hi."), turn("assistant", "Hello.", weight=0), *PAIR]],
    ),
    "tools": (
        {"messages": [turn("user", ASK), turn("assistant", None, tool_calls=[{"id": "1", **CALL}]),
                      turn("tool", "true", tool_call_id="1"), turn("assistant", REPLY)], "tools": json.dumps(TOOLS)},
        "messages",
        [[turn("user", ASK), turn("assistant", "", tool_calls=[{"id": "1", **CALL}]),
          turn("tool", "true", tool_call_id="1"), turn("assistant", REPLY)]],
    ),
    "a tool call beside content parts": (
        {"messages": [turn("user", ASK), turn("assistant", [{"type": "text", "text": "I look."}], tool_calls=[
            {"name": "is_prime", "arguments": '{"n": 11}'}])]},
        "messages", [[turn("user", ASK), turn("assistant", "I look.", tool_calls=[CALL])]],
    ),
    "empty texts beside calls": (
        {"messages": [turn("user", ASK), turn("assistant", [], tool_calls=json.dumps([CALL])), turn("tool", ""),
                      turn("assistant", "\n", tool_calls=[CALL])]},
        "messages",
        [[turn("user", ASK), turn("assistant", "", tool_calls=[CALL]), turn("tool", ""),
          turn("assistant", "", tool_calls=[CALL])]],
    ),
    "OpenAI's older function calls": (
        {"messages": [turn("user", ASK),
                      turn("assistant", None, function_call={"name": "is_prime", "arguments": '{"n": 11}'}),
                      turn("function", "true", name="is_prime"), turn("assistant", REPLY)]},
        "messages",
        [[turn("user", ASK), turn("assistant", "", tool_calls=[CALL]), turn("tool", "true", name="is_prime"),
          turn("assistant", REPLY)]],
    ),
    "flags of parts that leave a turn out": (
        {"messages": [turn("user", "Hi."), turn("assistant", [{"type": "text", "text": "Hello.", "train": False}]),
                      *PAIR]},
        "messages", [[turn("user", "Hi."), turn("assistant", "Hello.", train=False), *PAIR]],
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": REPLY}], "system": SYSTEM},
        "sharegpt", [[turn("system", SYSTEM), *PAIR]],
    ),
    "sharegpt with its own system turn": (
        {"id": "a_0", "conversations": [{"from": "system", "value": SYSTEM}, {"from": "human", "value": ASK},
                                        {"from": "chatgpt", "value": REPLY}]},
        "sharegpt", [[turn("system", SYSTEM), *PAIR]],
    ),
    "sharegpt that begins with a greeting": (
        {"conversations": [{"from": "gpt", "value": "Hello."}, {"from": "human", "value": ASK},
                           {"from": "gpt", "value": REPLY}]},
        "sharegpt", [[turn("assistant", "Hello."), *PAIR]],
    ),
    "sharegpt with a tool": (
        {"conversations": [{"from": "human", "value": ASK},
                           {"from": "function_call", "value": '{"name": "is_prime", "arguments": {"n": 11}}'},
                           {"from": "observation", "value": "true"}, {"from": "gpt", "value": REPLY}],
         "tools": json.dumps(TOOLS)},
        "sharegpt",
        [[turn("user", ASK), turn("assistant", "", tool_calls=[CALL]), turn("tool", "true"),
          turn("assistant", REPLY)]],
    ),
    "conversations with roles": ({"conversations": PAIR}, "sharegpt", [PAIR]),
    "alpaca": ({"instruction": ASK, "input": "", "output": REPLY}, "alpaca", [PAIR]),
    "alpaca with an input": (
        {"instruction": "Name a prime", "input": "above 10.", "output": REPLY}, "alpaca",
        [[turn("user", "Name a prime\nabove 10."), turn("assistant", REPLY)]],
    ),
    "Dolly": (
        {"instruction": "Name a prime", "context": "above 10.", "response": REPLY, "category": "open_qa"}, "alpaca",
        [[turn("user", "Name a prime\nabove 10."), turn("assistant", REPLY)]],
    ),
    "alpaca with system and history": (
        {"instruction": ASK, "output": REPLY, "system": SYSTEM, "history": [["Hi.", "Hello."]]},
        "alpaca", [[turn("system", SYSTEM), *LONGER]],
    ),
    "TRL's strings": ({"prompt": ASK, "completion": REPLY}, "prompt-completion", [PAIR]),
    "TRL's messages": ({"prompt": PAIR[:1], "completion": PAIR[1:]}, "prompt-completion", [PAIR]),
    "TRL's messages after others": ({"prompt": LONGER[:3], "completion": LONGER[3:]}, "prompt-completion", [LONGER]),
    "TRL's messages with a system key, of which no answer of the prompt is trained": (
        {"system": SYSTEM, "prompt": PAIR, "completion": [turn("user", "Thanks."), turn("assistant", "Bye.")]},
        "prompt-completion",
        [[turn("system", SYSTEM), *PAIR, turn("user", "Thanks."), turn("assistant", "Bye.")]],
    ),
    "sharegpt with the same system turn twice": (
        {"conversations": [turn("system", SYSTEM), *PAIR], "system": SYSTEM}, "sharegpt",
        [[turn("system", SYSTEM), *PAIR]],
    ),
    "TRL's completion with a tool": (
        {"prompt": PAIR[:1], "completion": [turn("assistant", "", tool_calls=[CALL]), turn("tool", "true"), PAIR[1]]},
        "prompt-completion",
        [[PAIR[0], turn("assistant", "", tool_calls=[CALL])],
         [PAIR[0], turn("assistant", "", tool_calls=[CALL]), turn("tool", "true"), PAIR[1]]],
    ),
    "prompt and response": ({"prompt": ASK, "response": REPLY}, "prompt-response", [PAIR]),
    "question and answer": ({"question": ASK, "answer": REPLY}, "question-answer", [PAIR]),
    "OpenOrca": (
        {"id": "niv.1", "system_prompt": SYSTEM, "question": ASK, "response": REPLY},
        "question-answer", [[turn("system", SYSTEM), *PAIR]],
    ),
    "MetaMath": ({"type": "GSM_AnsAug", "query": ASK, "response": REPLY}, "query-response", [PAIR]),
    "input and output": ({"input": ASK, "output": REPLY}, "input-output", [PAIR]),
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """Write rows to a file of JSON lines and load it; ``notes`` are what was said."""

    def run(*rows: dict, spec: str = "{}", notes: list[str] | None = None, every_turn: bool = False, **settings):
        path = tmp_path / "rows.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # one that is read must stay as it is
            path.write_text(text, encoding="utf-8")
        say = [] if notes is None else notes
        return load_examples(
            spec.format(path), split="train", n=0, seed=0, every_turn=every_turn,
            settings=DataSettings(**settings), note=say.append,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", GOOD)
def test_every_format_is_told_by_its_keys_and_said(name, load, tmp_path):
    row, form, wanted = GOOD[name]
    notes: list[str] = []
    examples = load(row, notes=notes)
    assert [e["messages"] for e in examples] == wanted
    assert {e.get("dialogue") for e in examples} == ({examples[0]["origin"]} if len(wanted) > 1 else {None})
    (said,) = notes
    assert said.partition(";")[0] == f"read 1 row as {form} from {tmp_path / 'rows.jsonl'}"
    several = len(wanted) == 1 and any(m["role"] == "assistant" for m in wanted[0][1:-1])
    assert ("of 1 with several answers the last alone is trained" in said) == (
        several and "flags" not in name and "weights" not in name and "TRL" not in name
    )
    assert load(row, spec=f"{form}:{{}}") == examples, "named by a prefix"
    assert load(row, format=form) == examples, "named by a setting"
    encoded = encode_examples(examples, ByteTokenizer(), EncodingOptions())
    assert len(encoded.rows) == len(wanted), "and it can be tokenised"


def test_the_names_in_the_settings_are_those_of_the_formats():
    assert set(get_args(FormatName)) == set(FORMATS)


def test_every_turn_of_sharegpt_and_alpaca(load):
    for row in (GOOD["alpaca with system and history"][0], {"messages": [turn("system", SYSTEM), *LONGER]}):
        assert [len(e["messages"]) for e in load(row, every_turn=True)] == [3, 5]


def test_a_greeting_is_no_answer(load):
    row = GOOD["sharegpt that begins with a greeting"][0]
    assert load(row, every_turn=True) == load(row)
    flagged = {"messages": [turn("assistant", "Hello."), *PAIR, turn("user", "?"), turn("assistant", "!", train=False)]}
    assert [len(e["messages"]) for e in load(flagged)] == [3]


def test_foreign_columns_are_renamed(load):
    (example,) = load({"Q": ASK, "A": REPLY, "prompt": "other"}, columns={"prompt": "Q", "completion": "A"})
    assert example["messages"] == PAIR
    with pytest.raises(UserError, match=r"rows\.jsonl:1: expected the key 'B' that data\.columns names, found keys"):
        load({"Q": ASK}, columns={"prompt": "Q", "completion": "B"})
    with pytest.raises(UserError, match=r"data\.columns: .*found 'promt' .did you mean 'prompt'"):
        FormatOptions(columns={"promt": "Q"})


def test_text_is_documents_and_is_not_mixed_with_answers(load):
    assert load({"text": "one"}, {"text": "two"})[1]["text"] == "two"
    with pytest.raises(UserError, match=r"rows\.jsonl:2: expected a row as alpaca.*found keys \['text'\]"):
        load({"instruction": ASK, "output": REPLY}, {"text": "x"})


def test_formats_of_answers_may_be_mixed_and_are_counted(load, tmp_path):
    notes: list[str] = []
    rows = load(GOOD["alpaca"][0], GOOD["sharegpt"][0], GOOD["alpaca"][0], notes=notes)
    assert len(rows) == 3
    assert notes == [f"read 2 rows as alpaca, 1 row as sharegpt from {tmp_path / 'rows.jsonl'}"]


def test_keys_that_are_not_read_are_said(load, tmp_path):
    notes: list[str] = []
    load(GOOD["Dolly"][0], GOOD["OpenOrca"][0], {"Q": ASK} | LABELS, notes=notes)
    assert notes[0].endswith(f"from {tmp_path / 'rows.jsonl'}; keys that are not read: Q, category, id")
    columns = {"question": "Q", "answer": "A"}
    load({"Q": ASK, "A": REPLY, **{f"k{i}": 1 for i in range(9)}}, columns=columns, notes=notes)
    assert notes[1].endswith("; keys that are not read: k0, k1, k2, k3, k4, k5, k6, k7, ...")


def test_what_every_turn_does_not_change_is_not_said_of_it(load):
    row, notes = GOOD["TRL's messages after others"][0], []
    assert load(row, every_turn=True) == load(row, notes=notes)
    greeting = GOOD["sharegpt that begins with a greeting"][0]
    load(greeting, every_turn=True, notes=notes)
    assert not any("several answers" in note for note in notes)


LABELS = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, -100]}


def test_labels_say_exactly_which_tokens_are_trained(load):
    rows = encode_examples(load(LABELS), ByteTokenizer(), EncodingOptions(delimiters=("\x07",))).rows
    assert collate(rows, 0)["maskable"].tolist() == [[False, True, False, True, False]]
    assert rows[0].delimiter == [], "a token that is given is no delimiter of the answer"
    assert rows.maskable_counts().tolist() == [rows[0].maskable_count()] == [2]
    assert RowsBuilder(list(rows)).rows() == rows


def test_parts_of_an_answer_that_are_not_trained(load):
    parts = [{"type": "text", "text": "Wrong. "}, {"type": "text", "text": "Hm. ", "train": False},
             {"type": "text", "text": "Right."}]  # fmt: skip
    (row,) = encode_examples(
        load({"messages": [turn("user", ASK), turn("assistant", parts)]}), ByteTokenizer(), EncodingOptions()
    ).rows
    maskable = collate([row], 0)["maskable"][0]
    trained = [token for token, on in zip(row.input_ids, maskable.tolist(), strict=True) if on]
    assert ByteTokenizer().decode(trained) == "Wrong. Right."
    first = [{"type": "text", "text": "Hm. ", "weight": 0}, {"type": "text", "text": "Right."}]
    (row,) = encode_examples(
        load({"messages": [turn("user", ASK), turn("assistant", first)]}), ByteTokenizer(), EncodingOptions()
    ).rows
    assert row.given == [], "what is given first belongs to the prompt"
    assert ByteTokenizer().decode(row.input_ids[row.prompt_length :]) == "Right."


def test_parts_that_cannot_be_left_out_exactly_are_refused(load):
    parts = [{"type": "text", "text": "Hm. ", "train": False}, {"type": "text", "text": "Right."}]

    class Spaced(ByteTokenizer):
        def encode(self, text):
            return super().encode(f" {text}")

    def encode(tokenizer, **more):
        rows = load({"messages": [turn("user", ASK), turn("assistant", parts, **more)]})
        return encode_examples(rows, tokenizer, EncodingOptions())

    with pytest.raises(UserError, match=r"rows\.jsonl:1: .* that the tokenizer then spells otherwise"):
        encode(Spaced())
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .* found tool calls beside them"):
        encode(ByteTokenizer(), tool_calls=[CALL])


KNOWN = "expected keys of a known format (messages; conversations/conversation; input_ids; instruction and output"
# name: (row, what is said)
BAD = {
    "no known key": ({"foo": 1}, f"{KNOWN}"),
    "near alpaca": ({"Instruction": ASK, "outputs": REPLY},
                    'nearest is alpaca, which "data.columns={instruction: Instruction, output: outputs}" reads'),
    "preferences": ({"prompt": ASK, "chosen": REPLY, "rejected": "9"},
                    'found one of preferences (\'chosen\' and \'rejected\'); to train on the good answers alone: '
                    'data.format=prompt-completion "data.columns={prompt: prompt, completion: chosen}"'),
    "preferences of dialogues": ({"chosen": PAIR, "rejected": PAIR}, '"data.columns={messages: chosen}"'),
    "preferences beside messages": ({"messages": PAIR, "chosen": "a", "rejected": "b"}, "or data.format=messages"),
    "good and bad answers": ({"prompt": ASK, "completion": REPLY, "label": False}, "'label' of true or false); "
                             "to train on the good answers alone: leave out the rows whose 'label' is false"),
    "steps": ({"prompt": ASK, "completions": ["a"], "labels": [True]}, "found one of preferences ('completions')."),
    "a prompt alone": ({"prompt": PAIR[:1], "data_source": "gsm8k"}, "'completion' or 'response', found nothing"),
    "a picture": ({"messages": [turn("user", [{"type": "image_url", "image_url": {}}]), PAIR[1]]},
                  "since these rows hold no images or sounds, found 'image_url'"),
    "a part without text": ({"messages": [turn("user", [{"type": "text"}]), PAIR[1]]}, "'text' of a content part"),
    "an odd part": ({"messages": [turn("user", [3]), PAIR[1]]}, "content parts of type 'text'"),
    "an unknown speaker": ({"conversations": [{"from": "humam", "value": ASK}]}, "did you mean 'human'"),
    "no answer": ({"conversations": [{"from": "human", "value": ASK}]}, "an assistant turn after another"),
    "all flags off": ({"messages": [PAIR[0], turn("assistant", REPLY, train=False)]}, "all of them flagged not to"),
    "a trained question": ({"messages": [turn("user", ASK, train=True), PAIR[1]]}, "found a flag on a user turn"),
    "all parts off": ({"messages": [PAIR[0], turn("assistant", [{"type": "text", "text": REPLY, "train": False},
                                                                {"type": "text", "text": " "}])]},
                      "all of them flagged not to"),
    "a trained part of a question": ({"messages": [turn("user", [{"type": "text", "text": ASK, "train": True}]),
                                                   PAIR[1]]}, "found a flag on a user turn"),
    "a trained greeting": ({"messages": [turn("assistant", "Hi.", train=True), *PAIR]}, "after another turn"),
    "a greeting alone": ({"conversations": [{"from": "gpt", "value": "Hi."}]}, "after another turn"),
    "reasoning that is no text": ({"messages": [PAIR[0], turn("assistant", REPLY, reasoning_content=3)]},
                                  "text under 'reasoning_content', found int"),
    "content that is no text": ({"messages": [PAIR[0], turn("tool", 3), PAIR[1]]}, "text under 'content', found int"),
    "tools that define nothing": ({"messages": PAIR, "tools": [{"function": 3}]}, "found other objects in it"),
    "an odd flag": ({"messages": [PAIR[0], turn("assistant", REPLY, train="no")]}, "true or false, found 'no'"),
    "an odd weight": ({"messages": [PAIR[0], turn("assistant", REPLY, weight=0.5)]}, "weight of 0 or 1, found 0.5"),
    "flags that disagree": ({"messages": [PAIR[0], turn("assistant", REPLY, weight=1, train=False)]}, "to agree"),
    "two system turns": ({"conversations": [turn("system", "Other."), *PAIR], "system": SYSTEM}, "one system turn"),
    "a broken tool call": ({"conversations": [{"from": "function_call", "value": "f(11)"}]}, "tool call as JSON"),
    "a tool call nested too deeply": ({"conversations": [{"from": "function_call", "value": "[" * 100_000}]},
                                      "expected a tool call as JSON, found one nested too deeply"),
    "tools with no number": ({"messages": PAIR, "tools": '[{"x": NaN}]'}, "expected finite numbers, found nan"),
    "a tool call without a name": ({"messages": [turn("assistant", "", tool_calls=[{"function": {}}])]}, "with 'name'"),
    "tool calls that are none": ({"messages": [turn("assistant", "", tool_calls=3)]}, "a list under 'tool_calls'"),
    "tools that are none": ({"messages": PAIR, "tools": "[1]"}, "under 'tools', found other objects in it"),
    "empty value": ({"conversations": [{"from": "human", "value": " "}]}, "non-empty 'value'"),
    "history": ({"instruction": ASK, "output": REPLY, "history": ["Hi."]}, "[question, answer] under 'history'"),
    "output is a number": ({"instruction": ASK, "output": 3}, "under 'output', found int"),
    "labels too short": ({"input_ids": [1, 2], "labels": [1]}, "as many 'labels' as 'input_ids', 2, found 1"),
    "other labels": ({"input_ids": [1, 2], "labels": [-100, 3]}, "found 3 at place 1"),
    "a label that is no id": ({"input_ids": [1, 2], "labels": [-100, 2.0]}, "found 2.0 at place 1"),
    "nothing labelled": ({"input_ids": [1, 2], "labels": [-100, -100]}, "only labels of -100"),
    "padding": ({"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [0, 1]}, "stored without padding"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_row_is_one_sentence_with_file_and_row(name, load):
    row, says = BAD[name]
    with pytest.raises(UserError) as caught:
        load({"prompt": ASK, "response": REPLY}, row)
    message = str(caught.value)
    assert "rows.jsonl:2: expected " in message
    assert says in message
    assert "\n" not in message


def test_the_options_that_a_refusal_names_read_the_row(load):
    preference = {"prompt": ASK, "chosen": REPLY, "rejected": "9"}
    columns = {"prompt": "prompt", "completion": "chosen"}
    assert load(preference, format="prompt-completion", columns=columns)[0]["messages"] == PAIR
    dialogues = {"chosen": PAIR, "rejected": PAIR}
    assert load(dialogues, format="messages", columns={"messages": "chosen"})[0]["messages"] == PAIR
    assert load({"messages": PAIR, "chosen": "a", "rejected": "b"}, format="messages")[0]["messages"] == PAIR
    renamed = {"instruction": "Instruction", "output": "outputs"}
    assert load({"Instruction": ASK, "outputs": REPLY}, columns=renamed)[0]["messages"] == PAIR


def test_a_named_format_needs_its_keys(load):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: expected text under 'instruction', found nothing"):
        load({"prompt": ASK, "response": REPLY}, format="alpaca")
