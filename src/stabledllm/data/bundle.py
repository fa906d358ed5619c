"""The rows of a run: training, validation, and test problems, which never overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from stabledllm.config.settings import DataSettings
from stabledllm.data.rows import Encoded, EncodingOptions, TokenRow, encode_examples
from stabledllm.data.sources import content, has_own_splits, hold_out, load_examples
from stabledllm.data.text import pack_documents
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
    encoded = _encode(_load(settings, spec, split, limit), tokenizer, settings, split, limit)
    return encoded.rows, f"{split}: {spec}: {encoded.summary(settings.max_len)}"


def _load(settings: DataSettings, spec: str, split: str, limit: int | None) -> list[dict]:
    return load_examples(
        spec,
        split=split,
        n=limit or SYNTHETIC_ROWS[split],
        seed=settings.seed,
        every_turn=settings.every_turn,
        text_fields=settings.text_fields,
    )


def _encode(examples: list[dict], tokenizer, settings: DataSettings, split: str, limit: int | None) -> Encoded:
    """Rows, at most ``limit`` of them; documents become rows first, and only training rows may be short."""
    if "text" not in examples[0]:
        return encode_examples(examples[:limit], tokenizer, encoding_options(settings))
    short = settings.short_share if split == "train" else 0.0
    packed = pack_documents(examples, tokenizer, length=settings.max_len, short_share=short, seed=settings.seed)
    return replace(packed, rows=packed.rows[:limit])


def load_bundle(settings: DataSettings, tokenizer, say: Callable[[str], None] = lambda _: None) -> DataBundle:
    """Everything a run needs; ``say`` gets one line a split on what was kept and dropped.

    Raises:
        UserError: bad data, or rows of ``validation`` or ``test`` that are also in ``train``.
    """
    train, validation = _train_and_validation(settings)
    test = _test(settings)
    _refuse_overlap(train, {"validation": validation, "test": test})
    rows, notes = {}, []
    limits = {"train": settings.train_rows, "validation": settings.validation_rows}
    for split, examples in (("train", train), ("validation", validation)):
        encoded = _encode(examples, tokenizer, settings, split, limits[split])
        rows[split] = encoded.rows
        notes.append(f"{split}: {encoded.summary(settings.max_len)}")
        say(notes[-1])
    return DataBundle(rows["train"], rows["validation"], test, notes)


def _train_and_validation(settings: DataSettings) -> tuple[list[dict], list[dict]]:
    train = _load(settings, settings.train, "train", settings.train_rows)
    if settings.validation or has_own_splits(settings.train):
        held = _load(settings, settings.validation or settings.train, "validation", settings.validation_rows)
    else:
        train, held = hold_out(train, settings.validation_share, settings.seed)
    return _limited(train, settings.train_rows), _limited(held, settings.validation_rows)


def _limited(examples: list[dict], rows: int | None) -> list[dict]:
    """Examples are rows; documents are counted once they are packed."""
    return examples if "text" in examples[0] else examples[:rows]


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
