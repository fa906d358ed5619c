"""Which splits data have by themselves, and whether a run has rows to evaluate on and score, and enough to train on."""

from __future__ import annotations

from pathlib import Path

from stabledllm.config.settings import DataSettings
from stabledllm.data.folders import splits_in
from stabledllm.data.formats import FORMATS, PROMPTS
from stabledllm.data.kinds import HUB, LINES
from stabledllm.errors import UserError
from stabledllm.images.kinds import are_images
from stabledllm.tasks.examples import Examples, picked
from stabledllm.tasks.registry import task_and_gold, task_of


def own_splits(spec: str) -> tuple[str, ...]:
    """The splits that a specification has by itself; none for a file that is one split."""
    if are_images(spec):
        from stabledllm.images.sources import own_splits as of_images  # brings NumPy, which names alone do not need

        return of_images(spec)
    task, where = task_of(spec), spec.partition(":")[2]
    if task is None:
        kind = spec.partition(":")[0]
        path = where if kind in (LINES, *FORMATS) else spec
        return () if kind == HUB or not path else splits_in(Path(path).expanduser())
    if where and not task.splits_files and not Path(where).expanduser().is_dir():
        return ()
    return task.splits


def is_held_out(data: DataSettings) -> bool:
    """Whether the validation rows are a share of the training rows: none are given, and ``train`` has none."""
    return data.validation is None and "validation" not in own_splits(data.train)


def has_validation(data: DataSettings) -> bool:
    """Whether there are rows to evaluate on; ``validation_share`` 0 holds none out."""
    return data.validation_share > 0 or not is_held_out(data)


def held_in_memory(data: DataSettings) -> tuple[str, ...]:
    """The splits that become rows of tokens before training; streamed training rows come later."""
    train = () if data.streaming else ("train",)
    return (*train, "validation") if has_validation(data) else train


def has_test(data: DataSettings) -> bool:
    """Whether there are rows whose completions are scored; of prompts those held out, where their answers are known."""
    return data.test_rows != 0 and could_test(data)


def could_test(data: DataSettings) -> bool:
    """Whether the data have rows whose completions can be scored, be they wanted (``data.test_rows``) or not."""
    given = data.test is not None or "test" in own_splits(data.train)
    return given or (data.format == PROMPTS and has_validation(data))


def refuse_few_rows(batch: int, rows: int, *, joined: bool = False) -> None:
    """Refuse a step of more rows than there are to train on, which would hold some of them twice.

    Args:
        joined: whether documents were joined to rows of ``max_len`` tokens, so that there are fewer than in the file.

    Raises:
        UserError: says which batch works.
    """
    more = "a smaller data.max_len, to whose length plain text is joined" if joined else "give more rows"
    if batch > rows:
        raise UserError(
            f"key 'batch': expected at most as many rows per step as there are to train on, {rows}, found {batch}; "
            f"write batch={rows} or less, or {more}."
        )


def answered_prompts(held_out: Examples, most: int | None) -> tuple[Examples, list[str]]:
    """The first held-out prompts whose answers are known, to be completed and scored, and a note on how many."""
    places = [place for place, example in enumerate(held_out) if task_and_gold(example)][:most]
    said = f"test: {len(places)} of the validation prompts, whose answers are known, are completed and scored"
    return picked(held_out, places), [said] if places else []


def answered(examples: Examples, spec: str) -> tuple[Examples, list[str]]:
    """A task's test rows that have an answer to score against, and a note on the others; other data is unchanged."""
    if task_of(spec) is None:
        return examples, []
    answered_places = [place for place, example in enumerate(examples) if task_and_gold(example)]
    if len(answered_places) == len(examples):
        return examples, []
    first = next(e["origin"] for e in examples if not task_and_gold(e))
    return picked(examples, answered_places), [
        f"test: dropped {len(examples) - len(answered_places)} without an answer to score against ({first}, ...)"
    ]
