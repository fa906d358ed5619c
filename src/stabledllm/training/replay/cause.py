"""Says in a sentence where a step's gradient norm came from, and what to do about it.

An outlier is split twice. First between the leading rows and the rest: without these rows, would the norm still be far
above the median? Then, for a leading row, between its draw and itself: how many times is its gradient larger than
under draws that any row might get, and how many times is that larger than other rows' gradients?
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median, median_low

from stabledllm.training.replay.analysis import Analysis, explained
from stabledllm.training.replay.parts import OfRow, Part
from stabledllm.training.replay.remedy import remedy
from stabledllm.training.replay.situation import ORDINARY, Situation

DRAW, LABEL, SHORT, ROW, DIVERGING, SPREAD, USUAL, NOT_FINITE = CAUSES = (
    "draw", "label", "short response", "row", "diverging", "spread", "usual", "not finite",
)  # fmt: skip
"""Few masked tokens at a large weight; a label that the model finds very unlikely; a response of few tokens; a row with
a large gradient for another reason; a model that gets worse, as at too high a learning rate; a step without leading
rows or such signs; no outlier; a loss or a gradient that is not finite."""
_SHORT = 4
"""Tokens of a short response at the most, and how many times shorter than the other rows' it is at the least."""
_UNLIKELY = 1.5
"""How many times the other rows' NLL that of a row with a bad label is, at the least, and nats above it."""
_WRONG = 4.0
"""How many nats a token that may be wrong is above the others of its row, at the least."""
_MUCH = 0.25
"""Share of the gradient from which leading rows of another kind are told beside the first."""


@dataclass(frozen=True)
class Cause:
    """Why a step's gradient norm is what it is: one of :data:`CAUSES`, and the sentence."""

    kind: str
    sentence: str


def cause_of(found: Analysis, now: Situation) -> Cause:
    """The cause of a step's gradient norm."""
    if now.problem:
        return Cause(NOT_FINITE, _not_finite(found, now))
    if now.median is not None and now.norm < ORDINARY * now.median:
        return Cause(USUAL, _usual(found, now))
    if found.leading and explained(now.norm, found.without, now.median) and not _alone_but_worse(found, now):
        return _of_leading(found, now)
    return _of_whole_step(found, now)


def _alone_but_worse(found: Analysis, now: Situation) -> bool:
    """Whether a step of one row, which leads it whatever the cause, comes when other rows are worse than before too."""
    return len(found.rows) == 1 and (now.is_worse(found.other_nll) or now.is_rising)


def _of_leading(found: Analysis, now: Situation) -> Cause:
    rows = {row.position: row for row in found.rows}
    leading = [rows[position] for position in found.leading]
    others = [row for row in found.rows if row.position not in found.leading]
    first = leading[0]
    usual = _usual_tokens(others, found)
    kinds = {row.position: _kind(row, others, usual, found.tokens if row is first else [], now) for row in leading}
    weight = {kind: sum(row.share for row in leading if kinds[row.position] == kind) for kind in kinds.values()}
    order = sorted(weight, key=lambda kind: -weight[kind])
    told = []
    for kind in [order[0], *(kind for kind in order[1:] if weight[kind] >= _MUCH)]:
        alike = [row for row in leading if kinds[row.position] == kind]
        tell = {DRAW: _draw, LABEL: _label, SHORT: _short, ROW: _row}[kind]
        of = "more" if told else f"of step {now.step}"
        begin = f"{_percent(weight[kind])} {of} is {_count(len(alike))}"
        told.append(f"{begin} {tell(alike[0], len(alike), others, found, now)}")
    return Cause(order[0], " ".join(told))


def _kind(row: OfRow, others: list[OfRow], usual_tokens: float, tokens: list[Part], now: Situation) -> str:
    if _is_short(row, usual_tokens, now):
        return SHORT
    drawn, itself = _factors(row, others, now)
    if itself >= drawn and _is_unlikely(row, others, now):
        return LABEL
    if drawn >= itself:
        return DRAW
    return LABEL if _unlikely_token(row, tokens) else ROW


def _factors(row: OfRow, others: list[OfRow], now: Situation) -> tuple[float, float]:
    """How many times its draw, and how many times the row itself, makes a row's gradient larger."""
    usual = row.usual_norm or 0.0
    norms = [other.norm for other in others if other.masked]
    like = mean(norms) if norms else now.median or usual
    return (row.norm / usual if usual else float("inf")), (usual / like if like else float("inf"))


def _usual_tokens(others: list[OfRow], found: Analysis) -> float:
    return median(other.maskable for other in others) if others else found.other_maskable


def _is_short(row: OfRow, usual: float, now: Situation) -> bool:
    """Where every token counts alike, the tokens of a short response weigh no more than others."""
    counts_as_a_row = now.method.objective.normalization == "row"
    return counts_as_a_row and row.maskable <= _SHORT and row.maskable * _SHORT <= usual


def _is_unlikely(row: OfRow, others: list[OfRow], now: Situation) -> bool:
    usual = _compared(others, now)
    return usual is not None and row.usual_nll >= max(_UNLIKELY * usual, usual + _UNLIKELY)


def _compared(others: list[OfRow], now: Situation) -> float | None:
    """What a row's NLL is held against: the other rows', or in a step without any the loss before it."""
    return median_low(other.usual_nll for other in others) if others else now.loss_before


def _unlikely_token(row: OfRow, tokens: list[Part]) -> Part | None:
    """A token that makes half of its row's share and is far less likely than the row's others; None without one."""
    if len(tokens) < 3 or tokens[0].share < 0.5 * row.share:
        return None
    usual = median(token.nll for token in tokens[1:])
    return tokens[0] if tokens[0].nll >= usual + _WRONG else None


def _draw(row: OfRow, count: int, others: list[OfRow], found: Analysis, now: Situation) -> str:
    blocks = found.blocks if row.position == found.leading[0] else []  # of the first alone
    part = blocks[0] if blocks else row
    where = f"its block {part.name} ({_percent(part.share)}) with " if blocks else ""
    t = "" if part.t is None else f" (t = {part.t:.2g})"
    also = ""
    if _is_unlikely(row, others, now):
        also = (
            f" Its usual NLL is {row.usual_nll:.3g} too, where {_those(others)} {_compared(others, now):.3g}: look at "
        )
        also += f"{row.origin or 'the row'}."
    told = f"{_of_rows(count)}{where}{_drawn(part, now)} at weight {part.weight:.3g}{t}"
    return f"{told}: {remedy(part, now.method)}.{also}"


def _those(others: list[OfRow]) -> str:
    return "the other rows' is" if others else "the mean loss before it was"


def _label(row: OfRow, count: int, others: list[OfRow], found: Analysis, now: Situation) -> str:
    if _is_unlikely(row, others, now):
        under = "" if now.method.autoregressive else " under any mask"
        what = (
            f"whose NLL is {row.usual_nll:.3g} nats per token{under}, where {_those(others)} "
            f"{_compared(others, now):.3g}, {_at_weight(row, others, now)}"
        )
    else:
        token = _unlikely_token(row, found.tokens)
        what = (
            f"with one token, '{token.name}', of NLL {token.nll:.3g}, which makes {_percent(token.share)} of the step "
            f"by itself"
        )
    also = ", the largest" if count > 1 else ""
    return f"{what}{also}: look at {row.origin or 'the row'}, and correct it or leave it out if its answer is wrong."


def _at_weight(row: OfRow, others: list[OfRow], now: Situation) -> str:
    drawn, _ = _factors(row, others, now)
    return f"at an ordinary weight ({row.weight:.3g})" if drawn < ORDINARY else "which explains more than its draw does"


def _short(row: OfRow, count: int, others: list[OfRow], found: Analysis, now: Situation) -> str:
    usual = _usual_tokens(others, found)
    begin = _of_rows(count).replace("with ", "with a response of ", 1)
    drawn = f" To its weight: {remedy(row, now.method)}." if row.weight > ORDINARY else ""
    return (
        f"{begin}{_tokens(row.maskable)}, where the others have {usual:.0f}, at weight {row.weight:.3g}: its few "
        f"tokens count as much as a whole response. Look at {row.origin or 'the row'}; objective.normalization=token "
        f"counts every token alike.{drawn}"
    )


def _row(row: OfRow, count: int, others: list[OfRow], found: Analysis, now: Situation) -> str:
    _, itself = _factors(row, others, now)
    than = "the other rows'" if others else "the median norm"
    under = "" if now.method.autoregressive else " under any mask"
    return (
        f"whose gradient is {itself:.3g} times {than}{under}, at an ordinary NLL "
        f"({row.usual_nll:.3g} nats per token): look at {row.origin or 'the row'}."
    )


def _of_whole_step(found: Analysis, now: Situation) -> Cause:
    largest = max((row.share for row in found.rows), default=0.0)
    begin = f"No row stands out in step {now.step} (the largest share of its {len(found.rows)} rows is "
    begin += f"{_percent(largest)})"
    if len(found.rows) == 1:
        begin = f"Step {now.step} has one row, and it is not that row alone"
    elif found.leading:
        begin = f"Step {now.step} is large as a whole: without {_count(len(found.leading))} that leads it the norm "
        begin += f"would still be {found.without:.3g}"
    nll = found.other_nll if len(found.rows) == 1 else median_low(row.usual_nll for row in found.rows)
    loss, last = now.loss_before, now.last_norms
    worse, rising = now.is_worse(nll), now.is_rising
    if not worse and not rising and now.median is None:
        return Cause(USUAL, _usual(found, now))
    if not worse and not rising:
        return Cause(
            SPREAD,
            f"{begin}, and the rows' NLL ({_number(nll)}) is as before: many rows drew large weights together, or the "
            f"data changes here.",
        )
    of = "the NLL of other rows" if len(found.rows) == 1 else "the rows' NLL"
    signs = [f"{of} is {_number(nll)} where the mean loss was {loss:.3g}"] if worse else []
    signs += [f"the norms rose before it ({', '.join(f'{norm:.3g}' for norm in last)})"] if rising else []
    return Cause(
        DIVERGING,
        f"{begin}: {' and '.join(signs)}. The model gets worse as a whole: the learning rate ({now.rate:.3g}) is too "
        f"high here; take a lower trainer.learning_rate, a longer warm-up or a smaller trainer.max_grad_norm.",
    )


def _usual(found: Analysis, now: Situation) -> str:
    before = "no row that stands out" if now.median is None else f"{now.norm / now.median:.2g} times the median norm"
    begin = f"Nothing unusual: step {now.step} has {before}"
    if not found.rows:
        return f"{begin}."
    first = max(found.rows, key=lambda row: row.share)
    return (
        f"{begin}; its largest row has {_percent(first.share)}, with {_drawn(first, now)} at weight {first.weight:.3g}."
    )


def _not_finite(found: Analysis, now: Situation) -> str:
    bad = [row for row in found.rows if not abs(row.loss) < float("inf")]
    if not bad:
        return (
            f"Step {now.step} is not finite ({now.problem}), though the loss of every row is: its gradient overflows "
            f"on the way back; look at the norms before it, and take a lower trainer.learning_rate or another "
            f"precision."
        )
    if len(bad) == len(found.rows):
        return (
            f"Step {now.step} is not finite ({now.problem}) in all of its {len(bad)} rows: the weights went wrong "
            f"before it; take a lower trainer.learning_rate, a longer warm-up or a smaller trainer.max_grad_norm."
        )
    return f"Step {now.step} is not finite ({now.problem}) in {_count(len(bad))}: look at {bad[0].origin or 'it'}."


def _count(rows: int) -> str:
    return "one row" if rows == 1 else f"{rows} rows"


def _of_rows(count: int) -> str:
    return "with " if count == 1 else "alike, the largest with "


def _drawn(part: OfRow | Part, now: Situation) -> str:
    """The masked tokens; of several views those of the view with the largest weight."""
    if now.method.autoregressive:
        return _tokens(part.maskable)
    largest = part.largest
    found = f"{largest.masked} masked {'token' if largest.masked == 1 else 'tokens'} of {part.maskable}"
    return f"{found} in one of {largest.views} views" if largest.views > 1 else found


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _tokens(count: int) -> str:
    return "one token" if count == 1 else f"{count} tokens"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
