"""Completions of conversations, as ``generate`` prints and ``eval`` scores them; optionally surviving a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stabledllm.config.settings import ShortDecodingSettings
from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.errors import UserError
from stabledllm.evaluation.journal import Journal
from stabledllm.models.evaluating import evaluating
from stabledllm.models.loading import LoadedModel


def complete(
    loaded: LoadedModel,
    conversations: list[list[dict]],
    options: DecodingOptions,
    batch: int,
    progress: Callable[[int], None] = lambda _: None,
    stats: DecodingStats | None = None,
    first: int = 0,
    tools: Sequence[Sequence[dict]] | None = None,
) -> list[str]:
    """Completions of conversations that end with a user turn, through the model's chat template.

    Args:
        first: number of the first conversation among all, on which what is drawn at random depends.
        tools: definitions of the tools of each conversation.
    """
    texts = []
    with evaluating(loaded.model) as model:
        for start in range(0, len(conversations), batch):
            run = enumerate(conversations[start : start + batch], first + start)
            shown = tools[start : start + batch] if tools else [()] * len(conversations[start : start + batch])
            prompts = [_encoded(loaded, each, place, own) for (place, each), own in zip(run, shown, strict=True)]
            ids = generate(
                model,
                prompts,
                options,
                mask_id=loaded.mask_id,
                eos_id=loaded.eos_id,
                pad_id=loaded.pad_id,
                ends=loaded.ends,
                first=first + start,
                stats=stats,
            )
            texts += [loaded.tokenizer.decode(i) for i in ids]
            progress(len(prompts))
    return texts


def complete_resumably(
    loaded: LoadedModel,
    conversations: list[list[dict]],
    options: DecodingOptions,
    batch: int,
    journal: Journal,
    progress: Callable[[int], None] = lambda _: None,
    stats: DecodingStats | None = None,
    tools: Sequence[Sequence[dict]] | None = None,
) -> list[str]:
    """The completions of :func:`complete`, decoded batch by batch into a journal, which the ranks share.

    What is drawn at random depends on a prompt's number among all, never on batches, ranks or a kill between them.
    Seconds and model calls are added up over all devices and over every start of a killed evaluation.
    """

    def decode(run: range, own: DecodingStats) -> list[dict]:
        prompts = [conversations[place] for place in run]
        shown = [tools[place] for place in run] if tools else None
        texts = complete(loaded, prompts, options, len(run), stats=own, first=run.start, tools=shown)
        return [{"completion": text} for text in texts]

    rows = decoded_into(journal, len(conversations), batch, decode, progress, stats)
    return [row["completion"] for row in rows]


def decoded_into(
    journal: Journal,
    n: int,
    batch: int,
    decode: Callable[[range, DecodingStats], list[dict]],
    progress: Callable[[int], None],
    stats: DecodingStats | None,
) -> list[dict]:
    """The rows of a journal of decoded batches; the first row of each batch holds the cost of decoding it.

    Args:
        decode: returns the rows of a range of items and counts its cost in the stats that it is given.
        stats: the cost of all batches is added to it.
    """

    def counted(run: range) -> list[dict]:
        own = DecodingStats()
        rows = decode(run, own)
        rows[0]["stats"] = dict(vars(own))
        return rows

    rows = journal.collect(n, batch, counted, progress)
    for row in rows if stats is not None else ():
        for name, value in row.get("stats", {}).items():
            setattr(stats, name, getattr(stats, name) + value)
    return rows


def without_effect(settings: ShortDecodingSettings, loaded: LoadedModel) -> list[str]:
    """A note on given steps and block where the model is autoregressive, which has neither."""
    given = sorted({"steps", "block"} & settings.model_fields_set) if loaded.autoregressive else []
    names = " and ".join(f"--{name}" for name in given)
    return [f"note: {names} without effect: an autoregressive model decodes one token a call"] if given else []


def _encoded(loaded: LoadedModel, conversation: list[dict], place: int, tools: Sequence[dict]) -> list[int]:
    try:
        return loaded.tokenizer.chat(conversation, tools) if tools else loaded.tokenizer.chat(conversation)
    except UserError as error:
        raise UserError(f"prompt {place + 1}: {error}") from None
