"""What ``validate --load`` finds in a recipe's model and data: config, tokenizer and every row, but no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.bundle import DataBundle, load_bundle
from stabledllm.data.images import are_images, with_image_defaults
from stabledllm.data.row_stream import LEAST_STREAMED, known_rows
from stabledllm.data.rows import marks_in
from stabledllm.data.sources import load_examples
from stabledllm.data.splits import refuse_few_rows
from stabledllm.data.token_rows import TokenRow, lengths_of
from stabledllm.experiment.planned import Planned, runs_of
from stabledllm.method_checks import check_marks, check_model
from stabledllm.models.opening import Opened, open_model
from stabledllm.plain_text import plain_text
from stabledllm.training.first_row import parts_of

_SHOWN = 200
"""Characters of a caption that are shown."""


def open_all(settings: TrainSettings | ExperimentSettings) -> Iterator[str]:
    """Yield what was found, line by line: the model, how rows were read and dropped, their lengths, the first row.

    Of images the first caption is read; their codes are made when they are trained on.

    Raises:
        UserError: anything wrong with the config, the tokenizer or a row, or too few rows for a step.
    """
    runs = runs_of(settings)
    run = with_image_defaults(runs[0].settings)
    opened = open_model(run)
    for planned in runs:
        check_model(planned.method, opened.name, opened.autoregressive)
    yield _model(opened)
    if opened.assumed:
        yield opened.assumed
    if are_images(run.data.train):
        yield _first_image(run)
        return
    notes: list[str] = []
    data = load_bundle(run.data, opened.tokenizer, notes.append)
    yield from notes
    rows = known_rows(data.train, LEAST_STREAMED)
    for planned in runs:
        if rows is data.train or len(rows) < LEAST_STREAMED:  # all of them
            refuse_few_rows(planned.settings.batch, len(rows), joined=not rows[0].prompt_length)
        check_marks(planned.method, marks_in(rows))
    yield from _rows(runs, data, rows, opened)


def _model(opened: Opened) -> str:
    kind = "autoregressive" if opened.autoregressive else "masked diffusion"
    weights = "new weights" if opened.weights is None else f"{opened.weights:,} weights in its files"
    template = "with a chat template" if getattr(opened.tokenizer, "chat_template", None) else "turns as plain text"
    return (
        f"model {opened.name}: family {opened.family} ({kind}), {weights}; tokenizer of "
        f"{opened.tokenizer.vocab_size:,} tokens, {template}"
    )


def _first_image(run: TrainSettings) -> str:
    data = run.data
    (first,) = load_examples(data.train, split="train", n=1, seed=data.seed, image=data.image, codes=False)
    return f"first picture: {plain_text(first['origin'])}, {plain_text(first['caption'], longest=_SHOWN)}"


def _rows(runs: list[Planned], data: DataBundle, rows: Sequence[TokenRow], opened: Opened) -> Iterator[str]:
    lengths = lengths_of(rows)
    number = f"{len(rows):,} to train on" if rows is data.train else f"read as they come, here the first {len(rows):,}"
    yield (
        f"rows: {number}, {len(data.validation):,} to evaluate on, {len(data.test):,} to test; "
        f"tokens of a training row: {min(lengths):,} to {max(lengths):,}, half have at most {median(lengths):,.0f}"
    )
    settings = runs[0].settings
    steps = settings.steps or -(-len(rows) // settings.batch) * settings.epochs
    yield f"steps: {steps:,.0f} of {settings.batch:,} rows"
    row = rows[0]
    yield f"first row: {plain_text(row.origin)}"
    for part in parts_of(row, opened.tokenizer):
        yield f"  {part.kind:9s} {part.text.plain}"
