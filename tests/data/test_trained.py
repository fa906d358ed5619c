"""Which tokens of a conversation are trained, against an enumeration of its own: turns, flags and parts at random."""

from __future__ import annotations

import random

import pytest

from stabledllm.data.formats import FormatOptions, examples_of
from stabledllm.data.rows import EncodingOptions, collate, encode_examples
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ASSISTANT, EOS, SYSTEM, USER, ByteTokenizer

MARKS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}


def conversation(rng: random.Random) -> list[dict]:
    return [_turn(rng, rng.choice(["user", "assistant", "assistant", "system"])) for _ in range(rng.randint(1, 6))]


def _turn(rng: random.Random, role: str) -> dict:
    message = {"role": role, "content": rng.choice(["x", "y y", "z \u00e9"])}
    if rng.random() < 0.4:
        message["content"] = [{"type": "text", "text": rng.choice(["a", "bc ", "\u00e9", " "])} for _ in range(3)]
    if role == "assistant" and rng.random() < 0.4:
        held = message["content"] if isinstance(message["content"], list) else [message]
        for each in held[:2]:
            each["train"] = rng.random() < 0.5
    return message


def wanted(messages: list[dict], every_turn: bool) -> list[tuple[list[int], list[bool]]] | None:
    """Ids and trained places of each row; None where the conversation is refused."""
    turns = [(m["role"], _pieces(m), _flag(m)) for m in messages]
    turns = [turn for turn in turns if turn[0] != "system" or _text(turn[1]).strip()]
    flags = any(flag is not None for _, _, flag in turns)
    if not all(_text(pieces).strip() for _, pieces, _ in turns):
        return None
    answers = [i for i, (role, _, flag) in enumerate(turns) if role == "assistant" and flag is not False]
    answers = [i for i in answers if i or turns[i][2]]
    answers = answers if flags or every_turn else answers[-1:]
    return None if not answers or not answers[0] else [_row(turns, i) for i in answers]


def _row(turns: list, place: int) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    for role, pieces, _ in turns[:place]:
        ids += [MARKS[role], *_text(pieces).encode(), *([EOS] if role == "assistant" else [])]
    ids.append(ASSISTANT)
    trained = [False] * len(ids)
    for text, on in turns[place][1]:
        ids += text.encode()
        trained += [on] * len(text.encode())
    return [*ids, EOS], [*trained, True]


def _pieces(message: dict) -> list[tuple[str, bool]]:
    content = message["content"]
    return [(content, True)] if isinstance(content, str) else [(p["text"], p.get("train", True)) for p in content]


def _text(pieces: list[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in pieces)


def _flag(message: dict) -> bool | None:
    pieces = _pieces(message)
    if not all(on for _, on in pieces) and not any(on and text.strip() for text, on in pieces):
        return False
    return message.get("train")


@pytest.mark.parametrize("every_turn", [False, True])
def test_the_trained_tokens_are_those_of_an_enumeration(every_turn):
    rng, read = random.Random(5), 0
    for _ in range(300):
        messages = conversation(rng)
        try:
            _, examples = examples_of({"messages": messages}, "f:1", FormatOptions(every_turn=every_turn))
        except UserError:
            assert wanted(messages, every_turn) is None, messages
            continue
        read += 1
        rows = encode_examples(examples, ByteTokenizer(), EncodingOptions()).rows
        maskable = collate(rows, 0)["maskable"]
        found = [(r.input_ids, on[: len(r)].tolist()) for r, on in zip(rows, maskable, strict=True)]
        assert found == wanted(messages, every_turn), messages
        assert [r.maskable_count() for r in rows] == maskable.sum(1).tolist()
    assert read > 100
