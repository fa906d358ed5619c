"""The rows of a run: training, validation, and test problems, which never overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from stabledllm.config.settings import DataSettings
from stabledllm.data.chosen import Chosen
from stabledllm.data.digests import content_digest
from stabledllm.data.formats import PREFERENCE, PROMPTS
from stabledllm.data.holding_out import hold_out_share, whole_dialogues
from stabledllm.data.image_rows import encode_images
from stabledllm.data.images import of_images
from stabledllm.data.overlap import Others, content, digest, dropped_note, without
from stabledllm.data.pairs import encode_pairs
from stabledllm.data.prompting import choose_shots, prompted
from stabledllm.data.rollout_prompts import RolloutPrompt, encode_prompts, with_all_columns
from stabledllm.data.row_cache import Encoding, RowCache, cache_of
from stabledllm.data.row_stream import LEAST_STREAMED, RowStream, open_stream
from stabledllm.data.rows import Encoded, EncodingOptions, TokenRow, encode_examples
from stabledllm.data.sources import load_examples, task_options
from stabledllm.data.splits import answered, answered_prompts, held_in_memory, own_splits
from stabledllm.data.stream_files import stream_files
from stabledllm.data.text import are_documents, pack_documents
from stabledllm.errors import UserError
from stabledllm.runtime.showing import busy
from stabledllm.tasks.examples import Examples
from stabledllm.tasks.registry import task_of

_KIND = {"train": "training", "validation": "validation"}
DELIMITERS = ("####",)
"""The answer delimiters of data that belong to no task."""


@dataclass(frozen=True)
class DataBundle:
    """The data of a run: encoded rows and test problems.

    ``test`` holds examples with ``messages``, or captions of images to draw; it is empty if there are none.
    """

    train: Sequence[TokenRow] | RowStream
    validation: Sequence[TokenRow]
    test: list[dict]
    notes: list[str]
    rejected: dict[str, Sequence[TokenRow]] = field(default_factory=dict)
    """For preferences the rejected answers of ``train`` and ``validation``, beside the chosen ones, which are those."""
    prompts: dict[str, list[RolloutPrompt]] = field(default_factory=dict)
    """For policy gradients what is answered: the prompts of ``train``, in its order, and those of ``validation``, whose
    rows are there only if all have an answer."""
    digests: dict[str, str] = field(default_factory=dict)
    """Digests of the splits' content (:class:`Chosen`); empty where the rows were put together by hand."""


def encoding_options(settings: DataSettings) -> EncodingOptions:
    """The encoder's options, from the settings."""
    task = task_of(settings.train)
    own = task.delimiters if task else DELIMITERS
    return EncodingOptions(
        max_len=settings.max_len,
        over_length=settings.over_length,
        delimiters=own if settings.delimiters is None else tuple(settings.delimiters),
        syntax=settings.syntax,
        pad_response_to=settings.pad_response_to,
    )


def load_rows(
    spec: str,
    tokenizer,
    settings: DataSettings,
    split: str,
    limit: int | None,
    say: Callable[[str], None] = lambda _: None,
    *,
    wanted: int = 0,
) -> tuple[Sequence[TokenRow], str]:
    """The rows of one specification, and a sentence that says how many were dropped; ``say`` tells of the cache.

    Args:
        wanted: the rows that are needed; so many, but at least 512, are read under ``data.streaming``.
    """
    if settings.streaming and spec == settings.train and split == "train":
        return open_stream(settings, tokenizer, encoding_options(settings)).first_told(max(wanted, LEAST_STREAMED))
    cache, name = _cache(settings), f"rows-{split}"

    def choose_rows() -> Chosen:
        notes: list[str] = []
        examples = limited(_load(spec, split, limit, settings, note=notes.append), limit)
        return Chosen([], notes, {}, lambda: {name: prompted(examples, settings, choose_shots(settings))})

    if cache and (spec != settings.train or limit != settings.train_rows):
        cache = None  # its name says which rows of which data it holds: those that the settings ask for
    with busy(f"reading {spec}"):
        chosen = cache.chosen(name, choose_rows, say) if cache else choose_rows()
        encoded = _encoded(chosen, name, split, tokenizer, settings, limit, say)
    alone = ["of each pair the chosen answer alone"] if settings.format == PREFERENCE else []
    told = f"{split}: {spec}: {encoded.summary(settings.max_len)}"
    return encoded.rows, "; ".join([told, *alone, *chosen.notes])


def limited(examples: Examples, rows: int | None) -> Examples:
    """The first ``rows`` examples at most, in whole dialogues; documents are counted later, when they are packed."""
    return examples if are_documents(examples) else whole_dialogues(examples, rows)


def encode_split(examples: Examples, tokenizer, settings: DataSettings, split: str, limit: int | None) -> Encoded:
    """Encode examples as at most ``limit`` rows; only training rows of documents may be short."""
    if of_images(examples):
        return encode_images(examples, tokenizer, settings)
    if not are_documents(examples):
        return encode_examples(examples, tokenizer, encoding_options(settings))
    short = settings.short_share if split == "train" else 0.0
    packed = pack_documents(examples, tokenizer, length=settings.max_len, short_share=short, seed=settings.seed)
    return replace(packed, rows=packed.rows[:limit])


def _encoded(
    chosen: Chosen,
    name: str,
    split: str,
    tokenizer,
    settings: DataSettings,
    limit: int | None,
    say: Callable[[str], None] = lambda _: None,
) -> Encoded:
    """The rows of the examples called ``name``, from the cache where there is one that knows the tokenizer."""
    if chosen.cache is None or getattr(tokenizer, "identity", None) is None:
        return encode_split(chosen.splits[name], tokenizer, settings, split, limit)
    short = settings.short_share if split == "train" else 0.0
    encoding = Encoding(encoding_options(settings), settings.max_len, short, settings.seed, limit)
    return chosen.cache.rows(name, tokenizer, lambda: chosen.splits[name], encoding, say)


def _cache(settings: DataSettings) -> RowCache | None:
    if settings.streaming:
        return None

    def load(spec: str, split: str) -> Examples:
        return _load(spec, split, getattr(settings, f"{split}_rows"), settings, codes=False)

    return cache_of(settings, load)


def choose(settings: DataSettings, say: Callable[[str], None] = lambda _: None) -> Chosen:
    """Choose the examples of a run and note what was kept and dropped; no tokenizer is needed.

    No question is in two splits: rows of ``train`` that are like one of ``validation`` or ``test``, and rows of
    ``validation`` that are like one of ``test``, are dropped and counted.

    Raises:
        UserError: bad data, or rows that stand word for word in two files given for different splits.
    """
    cache = _cache(settings)
    with busy(f"reading {settings.train}"):
        return cache.chosen("choice", lambda: _choose(settings), say) if cache else _choose(settings)


def _choose(settings: DataSettings) -> Chosen:
    splits, notes = _splits(settings)
    shots = choose_shots(settings, splits["test"])
    splits["validation"], dropped = without(splits["validation"], Others(shots))
    if dropped:
        notes.append(dropped_note("validation", "the worked examples", dropped))
    chosen = {
        name: prompted(limited(rows, getattr(settings, f"{name}_rows")), settings, shots)
        for name, rows in splits.items()
    }
    if settings.format == PROMPTS and not chosen["test"]:
        chosen["test"], more = answered_prompts(chosen["validation"], settings.test_rows)
        notes += more
    digests = {name: content_digest(rows) for name, rows in chosen.items()}
    if settings.streaming:
        digests["train"] = stream_files(settings).digest()
    return Chosen(list(chosen["test"]), notes, digests, lambda: chosen)


def load_bundle(
    settings: DataSettings,
    tokenizer,
    say: Callable[[str], None] = lambda _: None,
    chosen: Chosen | None = None,
    tell: Callable[[str], None] | None = None,
) -> DataBundle:
    """Load the data of a run; ``say`` gets one line on each split's kept and dropped rows.

    Args:
        chosen: the result of :func:`choose`, if it was called already.
        tell: gets the lines on the splits instead of ``say``, which then tells of the cache alone.

    Raises:
        UserError: the same as :func:`choose`, or rows that do not fit.
    """
    chosen = chosen or choose(settings, say)
    rows, rejected, prompts, notes = {"validation": []}, {}, {}, list(chosen.notes)
    if settings.streaming:
        rows["train"] = open_stream(settings, tokenizer, encoding_options(settings), chosen, say)
        notes.append(rows["train"].told())
    for split in held_in_memory(settings):
        with busy(f"tokenising the rows of {settings.train}"):
            if settings.format == PREFERENCE:
                encoded = encode_pairs(chosen.splits[split], tokenizer, encoding_options(settings))
                rows[split], rejected[split] = encoded.chosen, encoded.rejected
            elif settings.format == PROMPTS:
                encoded = encode_prompts(chosen.splits[split], tokenizer, encoding_options(settings))
                rows[split] = encoded.rows if split == "train" else encoded.answered_rows
                prompts[split] = encoded.prompts
            else:
                encoded = encode_chosen(chosen, split, tokenizer, settings, say)
                rows[split] = encoded.rows
        unmeasured = "" if split == "train" or len(rows[split]) else ", so that no NLL is measured"
        notes.append(f"{split}: {encoded.summary(settings.max_len)}{unmeasured}")
    for note in notes:
        (tell or say)(note)
    return DataBundle(
        rows["train"], rows["validation"], chosen.test, notes, rejected, with_all_columns(prompts), chosen.digests
    )


def encode_chosen(
    chosen: Chosen, split: str, tokenizer, settings: DataSettings, say: Callable[[str], None] = lambda _: None
) -> Encoded:
    """The rows of one split of what :func:`choose` chose, ``train`` or ``validation``, as a run has them."""
    return _encoded(chosen, split, split, tokenizer, settings, getattr(settings, f"{split}_rows"), say)


def _load(
    spec: str,
    split: str,
    limit: int | None,
    settings: DataSettings,
    *,
    codes: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> Examples:
    return load_examples(
        spec,
        split=split,
        n=limit or 0,
        seed=settings.seed,
        every_turn=settings.every_turn,
        options=task_options(settings),
        settings=settings,
        text_fields=settings.text_fields,
        image=settings.image,
        codes=codes,
        note=note,
    )


def _splits(settings: DataSettings) -> tuple[dict[str, Examples], list[str]]:
    """The splits ``train``, ``validation`` and ``test`` without overlap, and notes on what was dropped for that."""
    own = own_splits(settings.train)
    validation = settings.validation or (settings.train if "validation" in own else None)
    test = settings.test or (settings.train if "test" in own else None)
    splits: dict[str, Examples] = {"test": [], "validation": [], "train": []}
    notes: list[str] = []
    if test and settings.test_rows != 0:
        examples = _load(test, "test", settings.test_rows, settings, codes=False, note=notes.append)
        splits["test"], more = answered(examples, test)
        notes += more
    if validation:
        splits["validation"] = _load(validation, "validation", settings.validation_rows, settings, note=notes.append)
    train_rows = settings.train_rows
    if train_rows and not validation:
        # Enough rows that, after holding some out, train_rows are left.
        train_rows = int(1.1 * train_rows / (1 - settings.validation_share)) + 100
    if not settings.streaming:
        splits["train"] = _load(settings.train, "train", train_rows, settings, note=notes.append)
    given = {"test": settings.test is not None, "validation": settings.validation is not None}
    for split, others in (("train", ("validation", "test")), ("validation", ("test",))):
        for other in others:
            if given[other]:
                _refuse_equal(splits[split], splits[other], split, other)
            splits[split], dropped = without(splits[split], Others(splits[other]))
            if dropped:
                notes.append(dropped_note(split, other, dropped))
    if not validation and not settings.streaming:
        splits["train"], splits["validation"], note = hold_out_share(
            splits["train"], settings.validation_share, settings.seed
        )
        notes.append(note)
    for split in held_in_memory(settings):
        if not splits[split]:
            raise UserError(f"data.{split}: expected rows that are in no other split, found none.")
    return splits, notes


def _refuse_equal(examples: Examples, others: Examples, split: str, other: str) -> None:
    origins = {digest(content(example)): example["origin"] for example in examples}
    for example in others:
        if (same := origins.get(digest(content(example)))) is not None:
            raise UserError(
                f"{example['origin']}: expected {other} rows that are not in the {_KIND[split]} data, "
                f"found the prompt of {same}."
            )
