"""From a data specification to examples: a task (``gsm8k``, ``gsm8k:PATH``, ``synthetic:LEVEL``), ``jsonl:PATH`` or
``text:PATH``.

An example is ``{"messages": [...]}`` (ending with the assistant's turn) or ``{"input_ids", "prompt_length"}``, or a
document, ``{"text"}``, or a picture, ``{"caption", "codes"}``; always with ``origin``: the file and line, or the index,
that an error names. Those of a task carry its name as ``task`` and the data set's own answer field as ``gold``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stabledllm.config.settings import DataSettings, ImageSettings
from stabledllm.data import pictures, text
from stabledllm.data.overlap import content, likeness
from stabledllm.errors import UserError, did_you_mean
from stabledllm.images.sources import PICTURE_KINDS
from stabledllm.images.sources import own_splits as own_picture_splits
from stabledllm.tasks.files import read_jsonl, text_field
from stabledllm.tasks.registry import TASKS, task_of
from stabledllm.tasks.task import TaskOptions
from stabledllm.tasks.task import example as _pair

KINDS = (*TASKS, "jsonl", text.KIND, *PICTURE_KINDS)


def load_examples(
    spec: str,
    *,
    split: str,
    n: int,
    seed: int,
    every_turn: bool = False,
    options: TaskOptions | None = None,
    text_fields: Sequence[str] = ("text",),
    image: ImageSettings | None = None,
    codes: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> list[dict]:
    """The examples that ``spec`` names.

    Args:
        spec: ``synthetic`` or ``synthetic:LEVEL``; ``TASK:PATH``, or ``TASK`` for the hub; ``jsonl:PATH``.
        split: acts where the specification has splits of its own (:func:`own_splits`).
        n: rows that are wanted: what the synthetic task makes, where a task may stop reading; 0: whatever there is.
        every_turn: one row per assistant turn of ``messages`` instead of the last turn only.
        options: of the task; n and seed replace its own.
        text_fields: keys of a .jsonl's line that make a document of ``text:PATH``.
        image, codes, note: of pictures, see :func:`~stabledllm.data.pictures.load_pictures`.

    Raises:
        UserError: unknown kind, or whatever is wrong with the file, by line and key.
    """
    kind, colon, where = spec.partition(":")
    if kind not in KINDS:
        raise UserError(f"data '{spec}': unknown kind '{kind}'{did_you_mean(kind, KINDS)}.")
    if pictures.are_pictures(spec):
        _check_split(spec, split)
        return pictures.load_pictures(
            spec, split=split, n=n, seed=seed, settings=image or ImageSettings(), codes=codes, note=note
        )
    if kind != "synthetic" and not where and (colon or kind in ("jsonl", text.KIND)):
        raise UserError(f"data '{spec}': expected {kind}:PATH with a local file, found no path.")
    if task := task_of(spec):
        options = replace(options or TaskOptions(), rows=n or None, seed=seed)
        _check_split(spec, split)
        return [example | {"task": task.name} for example in task.load(where or None, split, options)]
    path = Path(where).expanduser()
    if kind == text.KIND:
        return text.load_documents(path, text_fields)
    records = read_jsonl(path)
    return [example for origin, record in records for example in _from_record(record, origin, every_turn)]


def _check_split(spec: str, split: str) -> None:
    known = own_splits(spec)
    if known and split not in known:
        raise UserError(f"data '{spec}': expected a split of {', '.join(known)}, found '{split}'.")


def own_splits(spec: str) -> tuple[str, ...]:
    """The splits that a specification keeps apart by itself; none for a file that is one split."""
    if pictures.are_pictures(spec):
        return own_picture_splits(spec)
    task, where = task_of(spec), spec.partition(":")[2]
    if task is None or (where and not task.splits_files and not Path(where).expanduser().is_dir()):
        return ()
    return task.splits


def task_options(settings: DataSettings) -> TaskOptions:
    """The plain arguments of a task."""
    return TaskOptions(annotations=settings.annotations, table=settings.table)


def hold_out(examples: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """``(train, validation)`` by a hash of each row's content: identical rows, and nearly identical ones, never part.

    The split depends on the content and the seed alone, not on the order of the rows.

    Raises:
        UserError: if either side would be empty.
    """
    first: dict[str, str] = {}  # of the rows that are alike, the one whose content decides for all
    for example in examples:
        text, like = content(example), likeness(example)
        first[like] = min(text, first.get(like, text))
    train, held = [], []
    for example in examples:
        digest = hashlib.sha256(f"{seed}/{first[likeness(example)]}".encode()).digest()
        (held if int.from_bytes(digest[:8], "big") < share * 2**64 else train).append(example)
    if not train or not held:
        raise UserError(
            f"data: a validation share of {share:g} of {len(examples)} rows leaves {len(train)} to train "
            f"and {len(held)} to validate; expected at least one of each."
        )
    return train, held


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
