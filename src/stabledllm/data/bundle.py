"""The rows of a run: training, validation, and test problems, which never overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stabledllm.config.settings import DataSettings
from stabledllm.data.rows import EncodingOptions, TokenRow, encode_examples
from stabledllm.data.sources import content, has_own_splits, hold_out, load_examples
from stabledllm.errors import UserError

SYNTHETIC_ROWS = {"train": 4000, "validation": 256, "test": 128}


@dataclass(frozen=True)
class DataBundle:
    """Encoded rows and test problems. ``test`` holds examples with ``messages``; empty if they have no answer."""

    train: list[TokenRow]
    validation: list[TokenRow]
    test: list[dict]
    notes: list[str]


def encoding_options(settings: DataSettings) -> EncodingOptions:
    """The plain arguments of the encoder."""
    return EncodingOptions(
        max_len=settings.max_len,
        over_length=settings.over_length,
        delimiters=tuple(settings.delimiters),
        syntax=settings.syntax,
        pad_response_to=settings.pad_response_to,
    )


def load_rows(
    spec: str, tokenizer, settings: DataSettings, split: str, limit: int | None
) -> tuple[list[TokenRow], str]:
    """Rows of one specification and a sentence on how many were dropped."""
    n = limit or SYNTHETIC_ROWS[split]
    examples = load_examples(spec, split=split, n=n, seed=settings.seed, every_turn=settings.every_turn)
    encoded = encode_examples(examples[:limit], tokenizer, encoding_options(settings))
    return encoded.rows, f"{split}: {spec}: {encoded.summary(settings.max_len)}"


def load_bundle(settings: DataSettings, tokenizer, say: Callable[[str], None] = lambda _: None) -> DataBundle:
    """Everything a run needs; ``say`` gets one line a split on what was kept and dropped.

    Raises:
        UserError: bad data, or rows of ``validation`` or ``test`` that are also in ``train``.
    """
    train, validation = _train_and_validation(settings)
    test = _test(settings)
    _refuse_overlap(train, {"validation": validation, "test": test})
    options, rows, notes = encoding_options(settings), {}, []
    for split, examples in (("train", train), ("validation", validation)):
        encoded = encode_examples(examples, tokenizer, options)
        rows[split] = encoded.rows
        notes.append(f"{split}: {encoded.summary(settings.max_len)}")
        say(notes[-1])
    return DataBundle(rows["train"], rows["validation"], test, notes)


def _train_and_validation(settings: DataSettings) -> tuple[list[dict], list[dict]]:
    def load(spec: str, split: str, limit: int | None) -> list[dict]:
        n = limit or SYNTHETIC_ROWS[split]
        return load_examples(spec, split=split, n=n, seed=settings.seed, every_turn=settings.every_turn)

    train = load(settings.train, "train", settings.train_rows)
    if settings.validation or has_own_splits(settings.train):
        held = load(settings.validation or settings.train, "validation", settings.validation_rows)
    else:
        train, held = hold_out(train, settings.validation_share, settings.seed)
    return train[: settings.train_rows], held[: settings.validation_rows]


def _test(settings: DataSettings) -> list[dict]:
    spec = settings.test or (settings.train if has_own_splits(settings.train) else None)
    if spec is None:
        return []
    n = settings.test_rows or SYNTHETIC_ROWS["test"]
    return load_examples(spec, split="test", n=n, seed=settings.seed)[: settings.test_rows]


def _refuse_overlap(train: list[dict], others: dict[str, list[dict]]) -> None:
    known = {content(example): example["origin"] for example in train}
    for split, examples in others.items():
        for example in examples:
            if content(example) in known:
                raise UserError(
                    f"{example['origin']}: expected {split} rows that are not in the training data, "
                    f"found the prompt of {known[content(example)]}."
                )
