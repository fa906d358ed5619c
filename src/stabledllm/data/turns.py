"""Conversations as data sets write them, brought to ``role`` and ``content``; and which of their turns are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stabledllm.errors import UserError, did_you_mean
from stabledllm.tasks.files import DECODER, parsed, text_field

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant", "model": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
"""The role that each name of a role means."""
PARTS = "parts"
"""The key of an answer's ``[text, trained]`` parts, where some of them are not trained."""
_FLAGS = ("train", "weight")


def turns_of(value: Any, key: str, origin: str) -> list[dict]:
    """The messages of a conversation with ``role`` system, user, assistant or tool and text under ``content``.

    Tool calls stay under ``tool_calls``, as do flags and every other key; a system turn without text is left out. What
    a tool returns, or is said beside a call, may be empty.

    Raises:
        UserError: no list of messages, an unknown role, content or reasoning that is no text, or flags that are none.
    """
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise UserError(f"{origin}: expected a list of objects under '{key}', found something else.")
    turns = [_turn(message, origin) for message in value]
    return [m for m in turns if m["role"] != "system" or m["content"].strip()]


def _turn(message: dict, origin: str) -> dict:
    named = "role" if "role" in message or "from" not in message else "from"
    role = message.get(named)
    if not isinstance(role, str) or role not in ROLES:
        hint = did_you_mean(role, ROLES) if isinstance(role, str) else ""
        raise UserError(
            f"{origin}: expected a {named} of {', '.join(dict.fromkeys(ROLES.values()))}, found {role!r}{hint}."
        )
    held = "content" if "content" in message or "value" not in message else "value"
    content = message.get(held)
    turn = {key: each for key, each in message.items() if key not in (named, held)} | {"role": ROLES[role]}
    if role == "function_call":
        return turn | {"content": "", "tool_calls": [_called(content, origin)]}
    if called := turn.pop("function_call", None):  # OpenAI's older name for one call
        turn.setdefault("tool_calls", [called])
    if turn.get("tool_calls"):
        turn["tool_calls"] = [_called(call, origin) for call in _list(turn["tool_calls"], origin)]
    if turn.get("reasoning_content"):
        text_field(turn, "reasoning_content", origin)
    if isinstance(content, list):
        content, more = _joined(content, turn["role"], origin)
        turn |= more
    may_be_empty = turn["role"] in ("system", "tool") or turn.get("tool_calls")
    if may_be_empty and (content is None or (isinstance(content, str) and not content.strip())):
        return turn | {"content": ""}
    return turn | {"content": text_field({held: content}, held, origin)}


def _list(value: Any, origin: str) -> list:
    calls = as_json(value, origin, "'tool_calls'")
    if not isinstance(calls, list):
        raise UserError(f"{origin}: expected a list under 'tool_calls', found {type(calls).__name__}.")
    return calls


def _called(value: Any, origin: str) -> dict:
    """A tool call as chat templates take it, whether it is written as OpenAI's, bare, or as JSON text."""
    call = as_json(value, origin, "a tool call")
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UserError(f"{origin}: expected a tool call with 'name' and 'arguments', found something else.")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
        arguments = as_json(arguments, origin, "'arguments' of a tool call")
    called = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return called | ({"id": call["id"]} if "id" in call else {})


def as_json(value: Any, origin: str, what: str) -> Any:
    """The value, read if it is JSON text.

    Raises:
        UserError: text that is no JSON, or none that rows may hold.
    """
    if not isinstance(value, str):
        return value
    return parsed(DECODER.decode, value, origin=origin, what=f"{what} as JSON")


def _joined(parts: Sequence, role: str, origin: str) -> tuple[str, dict]:
    """The texts of content parts as one, and what their flags say of the turn.

    That is :data:`PARTS` where some of an answer is not trained; and a flag of the turn where nothing of it is, or
    where a part of another role's turn is to be.
    """
    texts = [_text_of(part, origin) for part in parts]
    flags = [flag_of(part, origin) if isinstance(part, dict) else None for part in parts]
    trained = [flag is not False for flag in flags]
    more = {}
    if role != "assistant":
        more = {"train": True} if any(flags) else {}
    elif not all(trained):
        some = any(text.strip() for text, on in zip(texts, trained, strict=True) if on)
        more = {PARTS: [list(each) for each in zip(texts, trained, strict=True)]} if some else {"train": False}
    return "".join(texts), more


def _text_of(part: Any, origin: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else type(part).__name__
    if kind != "text":
        raise UserError(
            f"{origin}: expected content parts of type 'text', since these rows hold no images or sounds, "
            f"found {kind!r}."
        )
    if not isinstance(part.get("text"), str):
        found = type(part.get("text")).__name__
        raise UserError(f"{origin}: expected text under 'text' of a content part, found {found}.")
    return part["text"]


def flag_of(message: dict, origin: str) -> bool | None:
    """Whether a message is to be trained, by its ``train`` (true or false) or ``weight`` (1 or 0); None without them.

    Raises:
        UserError: other values, or two that contradict each other.
    """
    found = {}
    for key in _FLAGS:
        value = message.get(key)
        if value is None:
            continue
        fits = isinstance(value, bool) if key == "train" else value in (0, 1)
        if not fits:
            raise UserError(
                f"{origin}: expected {key} of {'true or false' if key == 'train' else '0 or 1'}, found {value!r}."
            )
        found[key] = bool(value)
    if len(set(found.values())) > 1:
        raise UserError(f"{origin}: expected 'train' and 'weight' to agree, found both true and false.")
    return next(iter(found.values()), None)


def trained_turns(turns: Sequence[dict], origin: str, *, every_turn: bool, given: int = 0) -> list[int]:
    """The places of the turns that are trained; each becomes the answer of a row that sees no later turn.

    Without flags that is the last assistant turn, or with ``every_turn`` each. With flags it is each assistant turn
    without a false one, as where flags come from.

    Args:
        given: number of first turns that are a prompt, never trained; all assistant turns behind it are.

    Raises:
        UserError: no turn to train, one without another before it, or a flag that asks for a turn of another role.
    """
    flags = [flag_of(turn, origin) for turn in turns]
    for turn, flag in zip(turns, flags, strict=True):
        if flag and turn["role"] != "assistant":
            raise UserError(
                f"{origin}: expected only assistant turns to be trained, found a flag on a {turn['role']} turn."
            )
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i >= given]
    if answers and answers[0] == 0 and not flags[0]:
        answers = answers[1:]  # a greeting, which answers nothing
    flagged = any(flag is not None for flag in flags)
    if flagged:
        wanted = [i for i in answers if flags[i] is not False]
        if answers and not wanted:
            raise UserError(
                f"{origin}: expected an assistant turn that is to be trained, found all of them flagged not to."
            )
        answers = wanted
    elif not every_turn and not given:
        answers = answers[-1:]
    if not answers or answers[0] == 0:
        raise UserError(f"{origin}: expected an assistant turn after another turn, found none.")
    return answers


def has_earlier_answers(turns: Sequence[dict]) -> bool:
    """Whether answers stand before the last one, and no flag says which turns are trained."""
    flagged = any(turn.get(key) is not None for turn in turns for key in _FLAGS)
    return not flagged and any(turn["role"] == "assistant" for turn in turns[1:-1])
