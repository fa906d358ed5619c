"""Loading the examples that a data specification names.

A specification is a task (``gsm8k``, ``gsm8k:PATH``, ``synthetic:LEVEL``), ``jsonl:PATH``, ``text:PATH`` or images.

An example is ``{"messages": [...]}`` (ending with the assistant's turn) or ``{"input_ids", "prompt_length"}``, or a
document, ``{"text"}``, or an image, ``{"caption", "codes"}``; always with ``origin``: the file and line, or the index,
that an error names. Those of a task carry its name as ``task`` and the data set's own answer field as ``gold``. Rows
with the same ``dialogue``, ``table`` or ``picture`` always stay in one split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from stabledllm.config.settings import DataSettings, ImageSettings
from stabledllm.data import images, text
from stabledllm.data.ids import ids_of
from stabledllm.errors import UserError, did_you_mean
from stabledllm.images.sources import IMAGE_KINDS
from stabledllm.images.sources import own_splits as own_image_splits
from stabledllm.tasks.examples import Examples, Mapped, Stored
from stabledllm.tasks.files import text_field
from stabledllm.tasks.registry import TASKS, task_of
from stabledllm.tasks.task import TaskOptions
from stabledllm.tasks.task import example as _pair

KINDS = (*TASKS, "jsonl", text.KIND, *IMAGE_KINDS)


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
) -> Examples:
    """Load the examples that ``spec`` names.

    Args:
        spec: ``synthetic`` or ``synthetic:LEVEL``; ``TASK:PATH``, or ``TASK`` for the hub; ``jsonl:PATH``.
        split: has an effect where the specification has splits of its own (:func:`own_splits`).
        n: the number of rows: the synthetic task makes so many, a task may stop reading there; 0: all there are.
        every_turn: one row per assistant turn of ``messages`` instead of the last turn only.
        options: options of the task; n and seed replace those in it.
        text_fields: keys of a .jsonl's line that make a document of ``text:PATH``.
        image, codes, note: for images, see :func:`~stabledllm.data.images.load_images`.

    Raises:
        UserError: an unknown kind, or anything wrong with the file, with its line and key.
    """
    kind, colon, where = spec.partition(":")
    if kind not in KINDS:
        raise UserError(f"data '{spec}': unknown kind '{kind}'{did_you_mean(kind, KINDS)}.")
    if images.are_images(spec):
        _check_split(spec, split)
        return images.load_images(
            spec, split=split, n=n, seed=seed, settings=image or ImageSettings(), codes=codes, note=note
        )
    if kind != "synthetic" and not where and (colon or kind in ("jsonl", text.KIND)):
        raise UserError(f"data '{spec}': expected {kind}:PATH with a local file, found no path.")
    if task := task_of(spec):
        options = replace(options or TaskOptions(), rows=n or None, seed=seed)
        _check_split(spec, split)
        return Mapped(task.load(where or None, split, options), partial(_of_task, task.name))
    path = Path(where).expanduser()
    if kind == text.KIND:
        return text.load_documents(path, text_fields)
    return Stored(path, partial(_from_record, every_turn=every_turn))


def _of_task(name: str, example: dict) -> dict:
    return example | {"task": name}


def _check_split(spec: str, split: str) -> None:
    splits = own_splits(spec)
    if splits and split not in splits:
        raise UserError(f"data '{spec}': expected a split of {', '.join(splits)}, found '{split}'.")


def own_splits(spec: str) -> tuple[str, ...]:
    """The splits that a specification has by itself; none for a file that is one split."""
    if images.are_images(spec):
        return own_image_splits(spec)
    task, where = task_of(spec), spec.partition(":")[2]
    if task is None or (where and not task.splits_files and not Path(where).expanduser().is_dir()):
        return ()
    return task.splits


def task_options(settings: DataSettings) -> TaskOptions:
    """The options of a task, from the settings."""
    return TaskOptions(annotations=settings.annotations, table=settings.table)


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
    if not every_turn or len(turns) == 1:
        return [{"messages": messages[: turns[-1] + 1], "origin": origin}]
    return [{"messages": messages[: i + 1], "origin": origin, "dialogue": origin} for i in turns]


def _from_ids(record: dict, origin: str) -> dict:
    ids, prompt = ids_of(record["input_ids"], origin), record.get("prompt_length")
    if type(prompt) is not int or not 0 <= prompt <= len(ids):
        raise UserError(f"{origin}: expected 'prompt_length' in [0, {len(ids)}], found {prompt!r}.")
    if prompt == len(ids):
        raise UserError(f"{origin}: expected at least one response token, found none after the prompt.")
    return {"input_ids": ids, "prompt_length": prompt, "origin": origin}
