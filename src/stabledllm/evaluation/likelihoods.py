"""The likelihoods that an evaluation measures beside the bound: resumable, shared over ranks, with their forwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stabledllm.build import build_decoding
from stabledllm.config.likelihoods import MEANING, OF_ORDERS, check_likelihoods
from stabledllm.config.settings import EvalSettings
from stabledllm.data.rows import Encoded, TokenRow
from stabledllm.decoding import DecodingStats
from stabledllm.errors import UserError
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.progress import shared_bar
from stabledllm.evaluation.ranks import Ranks
from stabledllm.evaluation.validation import NOISE_SEED, mean_over_rows
from stabledllm.likelihood.duel import check_model, duel
from stabledllm.likelihood.orders import OrderScores, effective_orders, log_mean, tangent
from stabledllm.models.evaluating import evaluating
from stabledllm.models.loading import LoadedModel
from stabledllm.runtime.files import write_jsonl

_RUN = 8
"""Rows that are measured between two writes to the journal."""
Say = Callable[[str], None]


def measure_likelihoods(
    loaded: LoadedModel, encoded: Encoded, settings: EvalSettings, identity: dict, ranks: Ranks, say: Say
) -> tuple[dict, dict[str, str]]:
    """The NLL of each kind of ``settings.likelihood`` per response token, and the packages that began the work.

    Each is an estimate over rows, as that of the bound, with the ``forwards`` that it took, what it ``is``, and, of
    several orders, the mean effective number of them. Each row's NLL stands in ``KIND.jsonl``. The noise of a row
    depends on its place alone, so that models are compared on the same orders.

    Raises:
        UserError: rows that have no such likelihood.
    """
    kinds, rows = settings.likelihood.kinds, encoded.rows
    metrics, others = {}, {}
    for together in _passes(kinds):
        journal = Journal(Path(settings.out) / "journal", f"likelihood-{together[0]}", identity, ranks)
        found = _collected(loaded, rows, together, settings, journal)
        others |= journal.other_versions
        for kind in together:
            if ranks.rank == 0:
                pairs = zip(rows, found, strict=True)
                lines = [{"origin": row.origin, "nll": each[kind]} for row, each in pairs]
                write_jsonl(Path(settings.out) / f"{kind}.jsonl", lines)
            estimate = mean_over_rows(torch.tensor([each[kind] for each in found], dtype=torch.float64))
            forwards = sum(each.get("forwards", 0) for each in found)
            say(f"{kind} NLL {estimate}, {MEANING[kind]} ({forwards:,} forwards)")
            metrics[f"{kind}_nll"] = estimate.as_dict() | {"is": MEANING[kind], "forwards": forwards}
            if kind in OF_ORDERS:
                effective = sum(each["effective_orders"] for each in found) / len(found)
                metrics[f"{kind}_nll"] |= {"orders": settings.likelihood.orders, "effective_orders": effective}
    return metrics, others


def refuse_unmeasurable(loaded: LoadedModel, settings: EvalSettings) -> None:
    """Refuse likelihoods that a model or a decoder has not, before any work.

    Raises:
        UserError: an autoregressive model, guidance of a model in blocks, or as
            :func:`~stabledllm.config.likelihoods.check_likelihoods` does.
    """
    asked, options = settings.likelihood, build_decoding(settings.decoding)
    check_likelihoods(asked.kinds, asked.orders, options)
    if asked.kinds and loaded.autoregressive:
        raise UserError(
            f"key 'likelihood.kinds': expected none for an autoregressive model, whose validation_nll is exact, found "
            f"'{asked.kinds[0]}'."
        )
    if "duel" in asked.kinds:
        check_model(loaded.model, options)
    if set(asked.kinds) - {"duel"}:
        OrderScores.check(loaded.model, options.guidance)


def _passes(kinds: Sequence[str]) -> list[list[str]]:
    """The kinds by the forwards that they share."""
    of_orders = [kind for kind in kinds if kind in OF_ORDERS]
    return [[kind] for kind in kinds if kind not in OF_ORDERS] + ([of_orders] if of_orders else [])


def _collected(
    loaded: LoadedModel, rows: Sequence[TokenRow], kinds: Sequence[str], settings: EvalSettings, journal: Journal
) -> list[dict]:
    """The NLL per token of each row under kinds that share forwards; the first of a run has its forwards."""

    def measured(run: range) -> list[dict]:
        some = [rows[place] for place in run]
        size = torch.tensor([row.response_length for row in some])
        with evaluating(loaded.model):
            values, forwards, effective = _values(loaded, some, run, kinds, settings)
        lines = [{kind: float(value) for kind, value in zip(kinds, each, strict=True)} for each in
                 torch.stack([-value / size for value in values], 1)]  # fmt: skip
        if effective is not None:
            lines = [line | {"effective_orders": float(n)} for line, n in zip(lines, effective, strict=True)]
        lines[0]["forwards"] = forwards
        return lines

    with shared_bar(len(rows), "+".join(kinds), "row", journal.ranks) as progress:
        return journal.collect(len(rows), _RUN, measured, progress)


def _values(
    loaded: LoadedModel, rows: list[TokenRow], numbers: range, kinds: Sequence[str], settings: EvalSettings
) -> tuple[list[Tensor], int, Tensor | None]:
    """The log-likelihoods of some rows under each kind, nats, (B,); the forwards; the effective number of orders."""
    options, asked = build_decoding(settings.decoding), settings.likelihood
    if kinds == ["duel"]:
        stats, ids = DecodingStats(), {"mask_id": loaded.mask_id, "pad_id": loaded.pad_id, "ends": loaded.ends}
        return [duel(loaded.model, rows, options, stats=stats, **ids)], stats.forward_rows, None
    scores = OrderScores.of(loaded.model, rows, list(numbers), seed=NOISE_SEED, guidance=options.guidance)
    if kinds == ["elbo"]:
        values = [scores.counts(range(settings.draws), settings.draws).mean(1)]
        return values, scores.forwards, None
    if kinds == ["stepmerge"]:
        values = [scores.merged(range(asked.orders), asked.segments).mean(1)]
        return values, scores.forwards, None
    logs = scores.orders(range(asked.orders))
    values = [{"multisample": log_mean, "tube": tangent}[kind](logs) for kind in kinds]
    return values, scores.forwards, effective_orders(logs)
