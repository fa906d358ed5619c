"""Tells which rows of an evaluation a run was trained on, word for word: their numbers say nothing about new rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from stabledllm.config.from_run import data_of
from stabledllm.config.run_folder import Run, run_behind
from stabledllm.data.bundle import choose
from stabledllm.data.images import are_images, of_images
from stabledllm.data.overlap import row_digest
from stabledllm.errors import UserError

_MOST_RUNS = 20
"""Most runs in a row, each trained further from the one before."""


def count_trained_on(model: str, examples: Sequence[dict], say: Callable[[str], None]) -> dict[str, int]:
    """How many examples are training rows of the run that made a model, and of those that it was trained further from.

    Prompt and answer must be equal word for word. Of a model that no run made nothing is known, and of pictures,
    nothing is compared.

    Args:
        model: a run's folder, or that of a model in one. examples: before any system prompt or worked example.
        say: gets a sentence for each run with such rows, and for each whose rows cannot be read any more.

    Returns:
        the counts above 0, by the run's folder.
    """
    counts: dict[str, int] = {}
    if of_images(examples):
        return counts
    digests: list[bytes] = []
    for run in _runs_behind(model):
        try:
            trained = _trained_rows(run)
        except UserError as error:
            say(f"note: whether {run.name} was trained on these rows is not known ({str(error).rstrip('.')})")
            continue
        digests = digests or [row_digest(example) for example in examples]
        if count := sum(digest in trained for digest in digests):
            counts[str(run.folder)] = count
            say(
                f"note: {run.name} was trained on {count} of these {len(examples)} rows: their numbers do not say how "
                f"it does on new ones"
            )
    return counts


def _runs_behind(model: str) -> Iterator[Run]:
    for _ in range(_MOST_RUNS):
        try:
            run = run_behind(model)
        except UserError:  # a run further back, whose model is gone
            return
        if run is None or not run.config:
            return
        yield run
        model = str(run.config.get("model"))


def _trained_rows(run: Run) -> set[bytes]:
    data = data_of(run)
    if are_images(data.train):
        return set()
    if data.streaming:
        raise UserError("its training rows were streamed, and are not read again for this.")
    # Neither changes which rows are trained on; without them rows are compared as they stand in their files.
    chosen = choose(data.model_copy(update={"system_prompt": None, "few_shot": 0}))
    return {row_digest(example) for example in chosen.splits["train"]}
