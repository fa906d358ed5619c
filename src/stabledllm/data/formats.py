"""The formats that rows of examples come in, told apart by their keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stabledllm.data.id_rows import BESIDE_IDS, from_ids
from stabledllm.data.prompt_rows import ASKS, GOLDS, prompt_examples
from stabledllm.data.turns import as_json, trained_turns, turns_of
from stabledllm.data.unknown_rows import refuse_preference, refuse_unknown
from stabledllm.errors import UserError, did_you_mean
from stabledllm.tasks.files import text_field


@dataclass(frozen=True)
class FormatOptions:
    """How rows become examples.

    ``name``: the format of every row; None: each row's own. ``columns``: for keys of a format, the data's own names.
    """

    name: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    every_turn: bool = False
    text_fields: Sequence[str] = ("text",)

    def __post_init__(self) -> None:
        if unknown := next((key for key in self.columns if key not in COLUMNS), None):
            hint = did_you_mean(unknown, COLUMNS)
            raise UserError(
                f"data.columns: expected a key of a format, such as {{prompt: YOUR_KEY, completion: YOUR_KEY}}, found "
                f"'{unknown}'{hint}."
            )


@dataclass(frozen=True)
class Format:
    """A format: the keys that tell it, any one of each tuple; and how a row of it becomes examples."""

    name: str
    keys: tuple[tuple[str, ...], ...]
    make: Callable[[dict, str, FormatOptions], list[dict]]
    more: tuple[str, ...] = ()
    """Keys that it reads where they are there."""

    @property
    def reads(self) -> set[str]:
        """All keys that it may read."""
        return {*self.more, *(key for names in self.keys for key in names)}

    def fits(self, record: dict) -> bool:
        """Whether a row has the keys of this format."""
        return all(any(key in record for key in names) for names in self.keys)


def examples_of(record: dict, origin: str, options: FormatOptions) -> tuple[Format, list[dict]]:
    """The format of a row, and the examples it makes: one, or one for each trained turn of its conversation.

    Raises:
        UserError: a row of no known format, or that lacks what its format needs; the message begins with ``origin``.
    """
    record = _renamed(record, options.columns, origin) if options.columns else record
    form = FORMATS[options.name] if options.name else format_of(record, origin)
    return form, form.make(record, origin, options)


def format_of(record: dict, origin: str) -> Format:
    """The format of a row by its keys.

    Raises:
        UserError: none is known, or it is one of preferences, which must be asked for by name.
    """
    plain = [form for form in FORMATS.values() if form.name not in BY_NAME]
    form = next((form for form in plain if form.fits(record)), None)
    refuse_preference(record, origin, form.name if form else None)
    known = {form.name: form.keys for form in plain}
    return form or refuse_unknown(record, origin, known)


def _renamed(record: dict, columns: dict[str, str], origin: str) -> dict:
    missing = [theirs for theirs in columns.values() if theirs not in record]
    if missing:
        raise UserError(
            f"{origin}: expected the key '{missing[0]}' that data.columns names, found keys {sorted(record)}."
        )
    taken = {*columns, *columns.values()}
    rest = {key: value for key, value in record.items() if key not in taken}
    return rest | {ours: record[theirs] for ours, theirs in columns.items()}


def _conversation(prompt: list[dict], answers: list[dict], record: dict, origin: str, options: FormatOptions):
    """The examples of a conversation. Turns of ``prompt`` are never trained; with it, all answers are."""
    before = [*_system(record, prompt or answers, origin), *prompt]
    turns = [*before, *answers]
    trained = trained_turns(turns, origin, every_turn=options.every_turn, given=len(before) if prompt else 0)
    extra = {"origin": origin} | _tools(record, origin)
    if len(trained) > 1:
        extra["dialogue"] = origin
    return [{"messages": turns[: i + 1], **extra} for i in trained]


def _system(record: dict, turns: list[dict], origin: str) -> list[dict]:
    """The system turn that stands in a key of its own; none where it is empty or the turns begin with the same."""
    key = next((key for key in _SYSTEM if record.get(key)), None)
    if key is None:
        return []
    text = text_field(record, key, origin)
    own = [turn["content"] for turn in turns if turn["role"] == "system"]
    if own and own != [text]:
        raise UserError(f"{origin}: expected one system turn, found '{key}' and another in the conversation.")
    return [] if own else [{"role": "system", "content": text}]


def _tools(record: dict, origin: str) -> dict:
    tools = as_json(record["tools"], origin, "'tools'") if record.get("tools") else None
    if tools and not (isinstance(tools, list) and all(map(_is_tool, tools))):
        found = "other objects in it" if isinstance(tools, list) else type(tools).__name__
        raise UserError(f"{origin}: expected a list of objects that define a function under 'tools', found {found}.")
    return {"tools": tools} if tools else {}


def _is_tool(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("function", tool), dict)


def _from_turns(*keys: str) -> Callable[[dict, str, FormatOptions], list[dict]]:
    def make(record: dict, origin: str, options: FormatOptions) -> list[dict]:
        key = next((key for key in keys if key in record), keys[0])
        return _conversation([], turns_of(record.get(key), key, origin), record, origin, options)

    return make


def _from_pair(asks: Sequence[str], answers: Sequence[str]) -> Callable[[dict, str, FormatOptions], list[dict]]:
    """Questions and answers, each a text or a list of messages."""

    def make(record: dict, origin: str, options: FormatOptions) -> list[dict]:
        ask = next((key for key in asks if key in record), asks[0])
        answer = next((key for key in answers if key in record), answers[0])
        prompt = _side(record, ask, "user", origin)
        return _conversation(prompt, _side(record, answer, "assistant", origin), record, origin, options)

    return make


def _side(record: dict, key: str, role: str, origin: str) -> list[dict]:
    if isinstance(record.get(key), list):
        return turns_of(record[key], key, origin)
    return [{"role": role, "content": text_field(record, key, origin)}]


def _from_alpaca(record: dict, origin: str, options: FormatOptions) -> list[dict]:
    question = text_field(record, "instruction", origin)
    if key := next((key for key in _INPUTS if record.get(key) not in (None, "")), None):
        question += "\n" + text_field(record, key, origin)
    answer = "output" if "output" in record or "response" not in record else "response"
    turns = [*_history(record.get("history") or [], origin), {"role": "user", "content": question}]
    answered = [{"role": "assistant", "content": text_field(record, answer, origin)}]
    return _conversation([], turns + answered, record, origin, options)


def _history(pairs: Any, origin: str) -> list[dict]:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{origin}: expected a list of [question, answer] under 'history', found something else.")
    turns = []
    for pair in pairs:
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": text_field({"history": text}, "history", origin)})
    return turns


def _from_preference(record: dict, origin: str, options: FormatOptions) -> list[dict]:
    """The conversation that ends with the chosen answer, and beside it the rejected one."""
    sides = {key: _side(record, key, "assistant", origin) for key in ("chosen", "rejected")}
    if "prompt" in record and not _are_whole(record, sides):
        prompt = _side(record, "prompt", "user", origin)
    else:  # both are whole conversations, alike up to the last answer
        prompt = sides["chosen"][:-1]
        if not prompt or sides["rejected"][:-1] != prompt:
            raise UserError(
                f"{origin}: expected 'prompt', or 'chosen' and 'rejected' that are conversations alike but for the "
                f"last answer, found neither{_hint_of_prompt(record)}."
            )
        sides = {key: turns[-1:] for key, turns in sides.items()}
    for key, turns in sides.items():
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise UserError(f"{origin}: expected one answer under '{key}' behind the prompt, found {len(turns)} turns.")
    (example,) = _conversation(prompt, sides["chosen"], record, origin, options)
    return [example | {"rejected": sides["rejected"][0]}]


def _are_whole(record: dict, sides: dict[str, list[dict]]) -> bool:
    """Whether both answers are whole conversations of which ``prompt`` repeats what they begin with or ask at last."""
    if any(len(turns) < 2 or turns[-1]["role"] != "assistant" for turns in sides.values()):
        return False
    before, prompt = sides["chosen"][:-1], record["prompt"]
    return prompt in (before, before[-1]["content"], before[0]["content"])


def _hint_of_prompt(record: dict) -> str:
    key = next((key for key in ("question", "instruction", "query", "input") if key in record), None)
    return f'; write "data.columns={{prompt: {key}}}"' if key and "prompt" not in record else ""


def _from_prompt(record: dict, origin: str, options: FormatOptions) -> list[dict]:
    return prompt_examples(record, origin, options, {form.name: (form.fits, form.make) for form in _ANSWERED})


def _from_text(record: dict, origin: str, options: FormatOptions) -> list[dict]:
    return [{"text": "\n".join(text_field(record, key, origin) for key in options.text_fields), "origin": origin}]


def _pair(name: str, asks: Sequence[str], answers: Sequence[str]) -> Format:
    return Format(name, (tuple(asks), tuple(answers)), _from_pair(asks, answers), _BESIDE)


_SYSTEM = ("system", "system_prompt")
_BESIDE = (*_SYSTEM, "tools")
_INPUTS = ("input", "context")
"""Alpaca's key of what an instruction is about, and Dolly's."""
TEXT, PREFERENCE, PROMPTS = "text", "preference", "prompts"
BY_NAME = (PREFERENCE, PROMPTS)
"""Formats that a run on single answers does not take a row for."""
_ANSWERED = (
    Format("messages", (("messages",),), _from_turns("messages"), _BESIDE),
    Format("sharegpt", (("conversations", "conversation"),), _from_turns("conversations", "conversation"), _BESIDE),
    Format("alpaca", (("instruction",), ("output", "response")), _from_alpaca, (*_INPUTS, "history", *_BESIDE)),
    _pair("prompt-response", ["prompt"], ["response"]),
    _pair("prompt-completion", ["prompt"], ["completion"]),
    _pair("question-answer", ["question"], ["answer", "response"]),
    _pair("query-response", ["query"], ["response"]),
    _pair("input-output", ["input"], ["output"]),
)
"""Those of questions and answers."""
_ALL = (
    *_ANSWERED[:2],
    Format("ids", (("input_ids",),), lambda record, origin, options: [from_ids(record, origin)], BESIDE_IDS),
    *_ANSWERED[2:],
    Format(TEXT, (("text",),), _from_text),
    Format(PREFERENCE, (("chosen",), ("rejected",)), _from_preference, ("prompt", *_BESIDE)),
    Format(PROMPTS, (tuple(ASKS),), _from_prompt, (*GOLDS, *_BESIDE)),
)
FORMATS = {form.name: form for form in _ALL}
"""The formats by name, in the order in which a row's keys are looked at."""
COLUMNS = tuple(sorted({key for form in _ALL for key in form.reads}))
"""The keys that formats have."""
