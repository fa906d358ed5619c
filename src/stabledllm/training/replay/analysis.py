"""Measures what every row of a rebuilt step has in its gradient, and looks closer at those that lead it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import mean, median

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.plain_text import plain_text
from stabledllm.training.replay.gradient import StepGradient
from stabledllm.training.replay.parts import Largest, OfRow, Part
from stabledllm.training.replay.remedy import EXACT, with_part
from stabledllm.training.replay.rows import Forwarded, OneRow, blocks_of, forward, redrawn, rows_beside, rows_of, usual
from stabledllm.training.trainer import MDMTrainer

MOST = 16
"""Tokens, and blocks, of the leading row whose own gradients are taken; the others are told together."""


@dataclass
class Analysis:
    """What a step's gradient is made of."""

    rows: list[OfRow]
    leading: list[int] = field(default_factory=list)
    """Positions of the rows that lead the gradient, the largest first, see :func:`leading_rows`."""
    without: float | None = None
    """The norm that the step's gradient would have without them."""
    blocks: list[Part] = field(default_factory=list)
    tokens: list[Part] = field(default_factory=list)
    other_nll: float | None = None
    """Mean usual NLL of rows of other steps, where it has one row alone; and the median number of their tokens."""
    other_maskable: float = 0.0

    def as_dict(self) -> dict:
        """In the form that JSON has."""
        return asdict(self)


def leading_rows(shares: list[float]) -> list[int]:
    """The places of the rows that lead a gradient, the largest first; none where no few rows do.

    They have a tenth of it each, are at most a quarter of the rows, and make most of it together: half, or more in a
    step of few rows, in which one of two has half of it anyway. Where no quarter does, up to half of the rows do with
    four fifths of it, such as two bad rows of four.

    >>> leading_rows([0.1, 0.7, 0.1, 0.1]), leading_rows([0.25] * 4), leading_rows([0.6, 0.4])
    ([1], [], [])
    >>> leading_rows([0.05, 0.45, 0.45, 0.05])
    [1, 2]
    """
    order = sorted(range(len(shares)), key=lambda place: -shares[place])
    for part in (4, 2):
        rows = max(1, len(shares) // part)
        leading = [place for place in order[:rows] if shares[place] >= 0.1]
        if sum(shares[place] for place in leading) >= min(0.8, max(0.5, 2 * rows / max(len(shares), 1))):
            return leading
    return []


def analyse(
    trainer: MDMTrainer, by_place: dict[int, TokenRow], finite: bool, progress: Callable[[], object]
) -> Analysis:
    """Measure the trainer's current step, whose gradient it has just taken.

    Args:
        by_place: the rows by their places in the order of the rows. finite: whether loss and gradient are.
        progress: called after each row.
    """
    rows = rows_of(trainer, by_place)
    trainer.views_per_forward = None
    if not finite:
        return Analysis([_of_row(trainer, one, None, progress) for one in rows])
    step = StepGradient(trainer.model.parameters(), trainer.watch.last[1])
    found = [_of_row(trainer, one, step, progress) for one in rows]
    out = Analysis(found)
    if len(rows) == 1:
        out.other_nll, out.other_maskable = _others(trainer, by_place, rows[0])
    leading = leading_rows([one.share for one in found])
    if not leading:
        return out
    out.leading = [found[place].position for place in leading]
    out.without = step.without(forward(trainer, rows[place]).loss for place in leading)
    for place in leading:
        norms = [step.share(drawn.loss)[1] for drawn in usual(trainer, rows[place])]
        found[place].usual_norm = mean(norms)
        found[place].largest = _largest(trainer, rows[place])
    first = leading[0]
    out.blocks, out.tokens = _parts(trainer, rows[first], step, found[first].share)
    return out


def _of_row(trainer: MDMTrainer, one: OneRow, step: StepGradient | None, progress: Callable[[], object]) -> OfRow:
    with torch.set_grad_enabled(step is not None):
        drawn = forward(trainer, one)
        share, norm = step.share(drawn.loss) if step else (None, None)
    often = _usual_nll(trainer, one)
    masked = drawn.masked
    own_t = drawn.draw.t
    progress()
    return OfRow(
        position=one.position,
        origin=one.row.origin,
        share=share,
        norm=norm,
        loss=float(drawn.tokens.detach().sum()),
        t=float(own_t[0]) if not blocks_of(drawn) else None,
        masked=int(masked.sum()),
        maskable=drawn.size,
        weight=float(drawn.weight.max()),
        nll=float(drawn.nll[masked].mean()) if masked.any() else 0.0,
        usual_nll=often,
        largest=_view(drawn),
    )


def _usual_nll(trainer: MDMTrainer, one: OneRow) -> float:
    with torch.no_grad():
        return mean(float(drawn.tokens.sum()) for drawn in usual(trainer, one))


def _others(trainer: MDMTrainer, by_place: dict[int, TokenRow], one: OneRow) -> tuple[float | None, float]:
    """What tells a model that got worse from a bad row, and a short one, where a step has one row."""
    others = rows_beside(trainer, by_place, one)
    if not others:
        return None, 0.0
    return mean(_usual_nll(trainer, other) for other in others), median(int(o.inputs["maskable"].sum()) for o in others)


def _view(drawn: Forwarded, places: Tensor | None = None) -> Largest:
    """The view of the largest weight, among all places or some."""
    weight, masked = drawn.weight, drawn.masked
    if places is not None:
        weight, masked = weight * places, masked & places
    view = int(weight.amax(1).argmax())
    return Largest(int(drawn.draw.active[0].sum()), int(masked[view].sum()))


def _largest(trainer: MDMTrainer, one: OneRow, places: Tensor | None = None) -> Largest:
    """The same, beside the draw under exact counts."""
    found = _view(redrawn(trainer, one, trainer.method), places)
    method = with_part(trainer.method, EXACT)
    if method is not None:
        exact = redrawn(trainer, one, method)
        found.exact_masked = _view(exact, places).masked
        found.exact_weight = float((exact.weight if places is None else exact.weight * places).max())
    return found


def _parts(trainer: MDMTrainer, one: OneRow, step: StepGradient, of_row: float) -> tuple[list[Part], list[Part]]:
    """The shares of the blocks of a row, and of the tokens of the row or of its leading block, largest first."""
    drawn = forward(trainer, one)
    blocks = []
    places = torch.ones_like(drawn.draw.mask[0, 0])
    found = blocks_of(drawn)
    for block in sorted(found, key=lambda block: -abs(float(block.loss.detach())))[:MOST]:
        share, _ = step.share(block.loss * drawn.scale, again=True)
        blocks.append((block, share))
    blocks.sort(key=lambda pair: -pair[1])
    if blocks:
        places = blocks[0][0].places
    named = [
        Part(
            str(block.number),
            share,
            block.weight,
            block.t,
            block.masked,
            block.maskable,
            largest=_largest(trainer, one, block.places),
        )
        for block, share in blocks
    ]
    return named, _tokens(trainer, one, drawn, step, places)


def _tokens(trainer: MDMTrainer, one: OneRow, drawn: Forwarded, step: StepGradient, places: Tensor) -> list[Part]:
    chosen = (drawn.masked & places[None]).nonzero().tolist()
    chosen.sort(key=lambda at: -abs(float(drawn.tokens[at[0], at[1]].detach())))
    found = []
    for view, place in chosen[:MOST]:
        share, _ = step.share(drawn.tokens[view, place] * drawn.scale, again=True)
        token = int(one.inputs["input_ids"][0, place])
        weight, nll = float(drawn.weight[view, place]), float(drawn.nll[view, place])
        found.append(Part(_text(trainer.processing_class, token), share, weight, place=place, nll=nll))
    return sorted(found, key=lambda part: -part.share)


def _text(tokenizer, token: int) -> str:
    """The text of a token, as one may print it: a special one's name, and the number of one without a text."""
    return plain_text(tokenizer.special_name(token) or tokenizer.decode([token]), longest=20) or str(token)


def explained(norm: float, without: float | None, median: float | None) -> bool:
    """Whether the leading rows explain more than half of an outlier's excess over the median, on a logarithmic scale.

    >>> explained(100.0, without=5.0, median=1.0), explained(100.0, without=50.0, median=1.0)
    (True, False)
    """
    if without is None:
        return False
    if median is None or norm <= median:
        return True
    return math.log(norm / max(without, median)) >= 0.5 * math.log(norm / median)
