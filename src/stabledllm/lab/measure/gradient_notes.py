"""The notes of a decomposition on the gradient's noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from stabledllm.gradient.components import GradientDecomposition
from stabledllm.gradient.floor import GradientFloor
from stabledllm.gradient.mask_split import MaskSplit
from stabledllm.stats.estimate import Estimate


def notes_of_rows(parts: GradientDecomposition, floor: GradientFloor, entries: Sequence[dict]) -> Iterator[str]:
    """Yields the notes on whole responses: the least noise, and what cannot be relied on."""
    shared, lowdisc, own = map(_least, (floor.shared, floor.lowdisc, floor.own))
    yield (
        f"The floor of one counted view a row: no density of t brings the gradient's noise at equal compute below "
        f"{shared} of Standard's, with low discrepancy {lowdisc}; a density for every row, known beforehand, would "
        f"reach {own}."
    )
    counted = "A, B and C were measured count by count; drawn steps miss the tail, and their errors are too small"
    yield from _unreliable(parts, entries, counted)


def notes_of_chosen(parts: GradientDecomposition, entries: Sequence[dict], tokens: str) -> Iterator[str]:
    """Yields the notes where the model chooses the masked tokens: what is not known, and what cannot be relied on."""
    yield (
        f"Under objective.tokens={tokens} the model chooses the masks: A of the gradient holds what it chooses by, and "
        f"neither the least noise of a density nor what A is made of (targets, context) is known."
    )
    drawn = "a few draws at small t decide A, B and C, and their errors may be too small"
    yield from _unreliable(parts, entries, f"{drawn}; measure more rows, with grad.rows")


def _unreliable(parts: GradientDecomposition, entries: Sequence[dict], tail: str) -> Iterator[str]:
    """Yields the notes on what cannot be relied on: predictions, a heavy tail with what it does, and a few rows."""
    apart = [entry["method"] for entry in entries if entry["gradient"]["drawn_steps_agree"] is False]
    if apart and not parts.heavy_tail:  # which explains it
        yield (
            f"{', '.join(apart)}: the gradient's variance over drawn steps is not the predicted one, and ratios are of "
            f"predicted ones; measure more (grad.rows, grad.steps) before relying on them."
        )
    if parts.heavy_tail:
        k = parts.pareto_k
        yield f"The squared gradient norm has a heavy tail under Standard's iid t (Pareto-k {k:.2f}): {tail}."
    if parts.heavy_rows:
        yield rows_note(parts.rows_pareto_k)


def notes_in_blocks(parts: GradientDecomposition, entries: Sequence[dict]) -> Iterator[str]:
    """Yields the notes on models in blocks: what cannot be relied on."""
    if heavy := [entry["method"] for entry in entries if entry["gradient"]["heavy_tail"]]:
        yield (
            f"{', '.join(heavy)}: a few draws at small t decide the gradient's variance, so that its error is not "
            f"known."
        )
    if parts.heavy_rows:
        yield rows_note(parts.rows_pareto_k, "blocks")


def note_of_split(split: MaskSplit) -> str:
    """The note on what A is made of, and what no estimator of each class can go below."""
    targets, context, count = map(_percent, (split.share_of_targets, split.share_of_context, split.share_of_count))
    return (
        f"Of the gradient's A {targets} is which tokens are targets, {context} which context they see and {count} how "
        f"many are masked ({split.context.n} rows). At equal compute no estimator of one view a row comes below "
        f"{_least(split.least_one_view)} of Standard's noise, and none whose views mask all tokens equally often, "
        f"otherwise independently, below {_least(split.least_balanced)}: the context, which only more forwards lower. "
        f"With the rows that its views displace, a partition at one t a row comes to {_least(split.least_partition)} "
        f"at best, unless much of the context is of three tokens together, which a partition lowers."
    )


def _percent(share: Estimate) -> str:
    """A share with its interval, where it has one."""
    low, high = share.interval()
    around = "" if math.isnan(low + high) else f" ({100 * low:.0f} to {100 * high:.0f})"
    return f"{100 * share.value:.0f} %{around}"


def _least(part: Estimate) -> str:
    """An estimate of what cannot be negative, one below 0 as 0, with its interval where that is known."""
    low, high = part.interval()
    around = "" if math.isnan(low + high) else f" ({max(low, 0.0):.2g} to {max(high, 0.0):.2g})"
    return f"{max(part.value, 0.0):.3g}{around}"


def rows_note(shape: float, what: str = "rows") -> str:
    """The note on how the gradients of a few rows (or blocks) affect the errors, by their Pareto-k, NaN for too few."""
    if math.isnan(shape):
        return (
            f"Whether a few {what} decide A of the gradient cannot be told from so few (no Pareto-k): its error may be "
            f"too small; measure more {what}, with grad.rows."
        )
    if what != "rows":
        return f"A few {what} decide A of the gradient (Pareto-k {shape:.2f}), and its error is too small."
    return (
        f"So have the rows themselves (Pareto-k {shape:.2f}): a few rows decide A, and its error is too small. Ratios "
        f"of methods, taken on the same rows, suffer less."
    )
