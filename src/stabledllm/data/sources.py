"""Loading the examples that a data specification names.

A specification is a task (``gsm8k``, ``gsm8k:PATH``, ``synthetic:LEVEL``, ``reasoning-gym:SET``), a file or folder of
a known format (``PATH``, ``jsonl:PATH``, ``sharegpt:PATH``), ``hub:OWNER/NAME``, ``text:PATH`` or images.

An example is ``{"messages": [...]}`` (ending with the assistant's turn; with ``tools`` where there are some), or
``{"input_ids", "prompt_length"}`` (with the places that are ``given`` behind the prompt), or a document, ``{"text"}``,
or an image, ``{"caption", "codes"}``; always with ``origin``: the file and line, or the index, that an error names.
Those of a task carry its name as ``task`` and the data set's own answer field as ``gold``. Rows with the same
``dialogue``, ``table`` or ``picture`` always stay in one split. ``exact`` rows are alike only where their questions
are equal in every character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from stabledllm.config.settings import DataSettings, ImageSettings
from stabledllm.data import images, text
from stabledllm.data.containers import ending_of
from stabledllm.data.formats import FORMATS, FormatOptions
from stabledllm.data.kinds import FILE, HUB, kind_of
from stabledllm.data.reading import Files, HubData, Reading
from stabledllm.data.splits import own_splits
from stabledllm.errors import UserError
from stabledllm.tasks.examples import Examples, Mapped, Spooled, Stored
from stabledllm.tasks.registry import MADE, TASKS, task_of
from stabledllm.tasks.task import TaskOptions


def load_examples(
    spec: str,
    *,
    split: str,
    n: int,
    seed: int,
    every_turn: bool = False,
    options: TaskOptions | None = None,
    settings: DataSettings | None = None,
    text_fields: Sequence[str] = ("text",),
    image: ImageSettings | None = None,
    codes: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> Examples:
    """Load the examples that ``spec`` names.

    Args:
        spec: ``synthetic`` or ``synthetic:LEVEL``; ``reasoning-gym:SET,key=value``; ``TASK:PATH``, or ``TASK`` for
            the hub; ``PATH``, ``jsonl:PATH`` or ``FORMAT:PATH``; ``hub:OWNER/NAME`` or ``hub:OWNER/NAME:SPLIT``.
        split: has an effect where the specification has splits of its own (:func:`~stabledllm.data.splits.own_splits`).
        n: the number of rows: the tasks that make rows make so many, a task may stop reading there; 0: all there are.
        every_turn: one row per assistant turn of ``messages`` instead of the last turn only.
        options: options of the task; n and seed replace those in it.
        settings: the format, the columns, and the hub's split and subset, as far as they are given.
        text_fields: keys of a .jsonl's line that make a document of ``text:PATH``.
        image, codes: for images, see :func:`~stabledllm.data.images.load_images`.
        note: gets a sentence on what was read, and how.

    Raises:
        UserError: an unknown kind, or anything wrong with the file, with its line and key.
    """
    kind, where = kind_of(spec)
    if images.are_images(spec):
        _check_split(spec, split)
        return images.load_images(
            spec, split=split, n=n, seed=seed, settings=image or ImageSettings(), codes=codes, note=note
        )
    if kind not in TASKS and not where:
        what = "OWNER/NAME" if kind == HUB else "PATH with a local file"
        raise UserError(f"data '{spec}': expected {kind}:{what}, found no {'name' if kind == HUB else 'path'}.")
    if kind in TASKS and spec == f"{kind}:" and kind not in MADE:
        raise UserError(f"data '{spec}': expected {kind}:PATH with a local file, found no path.")
    if task := task_of(spec):
        options = replace(options or TaskOptions(), rows=n or None, seed=seed, note=note)
        _check_split(spec, split)
        return Mapped(task.load(where or None, split, options), partial(_of_task, task.name))
    settings = settings or DataSettings()
    if kind == text.KIND and text.is_plain(path := Path(where).expanduser()):
        return text.load_documents(path, text_fields)
    _check_split(spec, split)
    named = kind if kind in FORMATS else settings.format
    reading = Reading(
        source_of(spec, split, settings), FormatOptions(named, settings.columns or {}, every_turn, tuple(text_fields))
    )
    examples = _held(reading)
    note(reading.said())
    return examples


def source_of(spec: str, split: str, settings: DataSettings) -> Files | HubData:
    """Where the rows of a specification of files or of the hub are read from.

    Args:
        split: what the rows are used for: train, validation or test.
    """
    kind, where = kind_of(spec)
    if kind == HUB:
        repository, _, named = where.partition(":")
        own = settings.split if split == "train" else None
        return HubData(repository, named or own or split, settings.subset)
    return Files(Path(where).expanduser(), as_lines=kind != FILE, split=split)


def _held(reading: Reading) -> Examples:
    """The examples, readable in any order: from their file where that is JSON lines, else from a temporary one."""
    source = reading.source
    plain = isinstance(source, Files) and len(source.paths) == 1
    if plain and ending_of(source.paths[0]) in ("", ".jsonl", ".ndjson"):
        if not ending_of(source.paths[0]) and not source.as_lines:
            next(source.rows())  # which refuses it
        return Stored(source.paths[0], reading.made)
    return Spooled(example for _, example in reading)


def _of_task(name: str, example: dict) -> dict:
    return example | {"task": name}


def _check_split(spec: str, split: str) -> None:
    splits = own_splits(spec)
    if splits and split not in splits:
        raise UserError(f"data '{spec}': expected a split of {', '.join(splits)}, found '{split}'.")


def task_options(settings: DataSettings) -> TaskOptions:
    """The options of a task, from the settings."""
    return TaskOptions(annotations=settings.annotations, table=settings.table)
