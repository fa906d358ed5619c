"""From a data specification to examples: ``synthetic``, ``gsm8k:PATH``, ``jsonl:PATH``, ``text:PATH``.

An example is ``{"messages": [...]}`` (ending with the assistant's turn) or ``{"input_ids",
"prompt_length"}``, or a document, ``{"text"}``; always with ``origin``: the file and line, or the index, that an error
names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from stabledllm.data import text
from stabledllm.errors import UserError, did_you_mean
from stabledllm.tasks import gsm8k, synthetic
from stabledllm.tasks.files import read_jsonl, text_field

KINDS = ("synthetic", "gsm8k", "jsonl", "text")


def load_examples(
    spec: str, *, split: str, n: int, seed: int, every_turn: bool = False, text_fields: Sequence[str] = ("text",)
) -> list[dict]:
    """The examples that ``spec`` names.

    Args:
        spec: ``synthetic`` or ``synthetic:LEVEL``, ``gsm8k:PATH``, ``jsonl:PATH``.
        split: only the synthetic task has splits of its own.
        n: number of synthetic examples; files are read whole.
        every_turn: one row per assistant turn of ``messages`` instead of the last turn only.
        text_fields: keys of a .jsonl's line that make a document of ``text:PATH``.

    Raises:
        UserError: unknown kind, or whatever is wrong with the file, by line and key.
    """
    kind, _, where = spec.partition(":")
    if kind not in KINDS:
        raise UserError(f"data '{spec}': unknown kind '{kind}'{did_you_mean(kind, KINDS)}.")
    if kind == "synthetic":
        level = synthetic.difficulty(where or "hard")
        rows = synthetic.examples(split, n, seed, level)
        return [_pair(r["prompt"], r["response"], f"{spec} {split} row {i}") for i, r in enumerate(rows)]
    if not where:
        raise UserError(f"data '{spec}': expected {kind}:PATH with a local file, found no path.")
    path = Path(where).expanduser()
    if kind == text.KIND:
        return text.load_documents(path, text_fields)
    if kind == "gsm8k":
        return [_pair(r["prompt"], r["response"], r["origin"]) for r in gsm8k.load(path)]
    return [example for origin, record in read_jsonl(path) for example in _from_record(record, origin, every_turn)]


def has_own_splits(spec: str) -> bool:
    """Whether the specification keeps train, validation and test apart by itself."""
    return spec.partition(":")[0] == "synthetic"


def hold_out(examples: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """``(train, validation)`` by a hash of each row's content: identical rows never part.

    The split depends on the content and the seed alone, not on the order of the rows.

    Raises:
        UserError: if either side would be empty.
    """
    train, held = [], []
    for example in examples:
        digest = hashlib.sha256(f"{seed}/{content(example)}".encode()).digest()
        (held if int.from_bytes(digest[:8], "big") < share * 2**64 else train).append(example)
    if not train or not held:
        raise UserError(
            f"data: a validation share of {share:g} of {len(examples)} rows leaves {len(train)} to train "
            f"and {len(held)} to validate; expected at least one of each."
        )
    return train, held


def content(example: dict) -> str:
    """What makes two examples the same for splitting: the conversation before the last answer, or the whole text."""
    if "text" in example:
        return example["text"]
    if "messages" in example:
        return repr([(m["role"], m["content"]) for m in example["messages"][:-1]])
    return repr(example["input_ids"][: example["prompt_length"]])


def _pair(prompt: str, response: str, origin: str) -> dict:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"messages": messages, "origin": origin}


def _from_record(record: dict, origin: str, every_turn: bool) -> list[dict]:
    if "messages" in record:
        return _from_messages(record["messages"], origin, every_turn)
    if "input_ids" in record:
        return [_from_ids(record, origin)]
    if "prompt" in record or "response" in record:
        return [_pair(text_field(record, "prompt", origin), text_field(record, "response", origin), origin)]
    raise UserError(
        f"{origin}: expected 'messages', 'prompt' and 'response', or 'input_ids' and 'prompt_length', "
        f"found keys {sorted(record)}."
    )


def _from_messages(messages: object, origin: str, every_turn: bool) -> list[dict]:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f"{origin}: expected a list of objects under 'messages', found something else.")
    for message in messages:
        if message.get("role") not in ("system", "user", "assistant"):
            raise UserError(f"{origin}: expected role system, user or assistant, found {message.get('role')!r}.")
        text_field(message, "content", origin)
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not turns or turns[0] == 0:
        raise UserError(f"{origin}: expected an assistant turn after another turn in 'messages', found none.")
    kept = turns if every_turn else turns[-1:]
    return [{"messages": messages[: i + 1], "origin": origin} for i in kept]


def _from_ids(record: dict, origin: str) -> dict:
    ids, prompt = record["input_ids"], record.get("prompt_length")
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{origin}: expected a list of token ids under 'input_ids', found something else.")
    if type(prompt) is not int or not 0 <= prompt <= len(ids):
        raise UserError(f"{origin}: expected 'prompt_length' in [0, {len(ids)}], found {prompt!r}.")
    if prompt == len(ids):
        raise UserError(f"{origin}: expected at least one response token, found none after the prompt.")
    return {"input_ids": ids, "prompt_length": prompt, "origin": origin}
