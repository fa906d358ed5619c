"""Completions that survive a kill: decoded batch by batch into a journal, shared by the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from stabledllm.decoding import DecodingOptions, DecodingStats
from stabledllm.evaluation.accuracy import complete
from stabledllm.evaluation.journal import Journal
from stabledllm.models.loading import LoadedModel


class ResumableCompletion:
    """In the place of :func:`~stabledllm.evaluation.accuracy.complete`, with the same results.

    What is drawn at random depends on a prompt's place among all, never on batches, ranks or a kill between them.
    Seconds and model calls are those of every start and device, added up.
    """

    def __init__(self, journal: Journal):
        self.journal = journal

    def __call__(
        self,
        loaded: LoadedModel,
        conversations: list[list[dict]],
        options: DecodingOptions,
        batch: int,
        progress: Callable[[int], None] = lambda _: None,
        stats: DecodingStats | None = None,
    ) -> list[str]:
        def decode(run: range) -> list[dict]:
            own = DecodingStats()
            prompts = [conversations[place] for place in run]
            texts = complete(loaded, prompts, options, len(run), stats=own, first=run.start)
            rows: list[dict] = [{"completion": text} for text in texts]
            rows[0]["stats"] = {field.name: getattr(own, field.name) for field in fields(own)}
            return rows

        rows = self.journal.collect(len(conversations), batch, decode, progress)
        if stats is not None:
            for row in rows:
                for name, value in row.get("stats", {}).items():
                    setattr(stats, name, getattr(stats, name) + value)
        return [row["completion"] for row in rows]
