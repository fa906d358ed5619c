"""The cause of steps that are made up, in which what is said can be known: of one row, of two bad ones, of views."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.training.replay.analysis import Analysis, leading_rows
from stabledllm.training.replay.cause import (
    DIVERGING,
    DRAW,
    LABEL,
    ROW,
    SHORT,
    SPREAD,
    cause_of,
)
from stabledllm.training.replay.parts import Largest, OfRow, Part
from stabledllm.training.replay.situation import Situation

CALM = Situation(
    step=40, norm=30.0, median=2.0, norms=[2.0] * 40, losses=[2.0] * 40, rate=1e-3, method=Method.parse("standard")
)


def row(position: int, share: float, **change) -> OfRow:
    """A row at an ordinary draw, of NLL 2."""
    given = {"origin": f"rows.jsonl:{position + 1}", "norm": 2.0, "loss": 2.0, "t": 0.5, "masked": 60, "maskable": 120}
    given |= {"weight": 2.0, "nll": 2.0, "usual_nll": 2.0, "largest": Largest(1, 60), "usual_norm": 2.0}
    return OfRow(**{"position": position, "share": share} | given | change)


def led(rows: list[OfRow], leading: list[int], without: float = 2.0, **more) -> Analysis:
    return Analysis(rows, leading=leading, without=without, **more)


def others(n: int = 3) -> list[OfRow]:
    return [row(position, 0.02) for position in range(1, n + 1)]


RARE = {"norm": 30.0, "masked": 3, "weight": 200.0, "t": 0.004, "largest": Largest(1, 3, 1, 113.0)}
BAD = {"norm": 30.0, "usual_norm": 30.0, "usual_nll": 12.0, "nll": 12.0}


def test_the_exact_count_is_that_of_the_draw_and_not_of_the_masked_tokens():
    """Three of 120 at weight 200 are, under an exact count at the same t, one at weight 113: not three at weight 40."""
    found = cause_of(led([row(0, 0.94, **RARE), *others()], [0]), CALM)
    assert found.kind == DRAW
    assert (
        "3 masked tokens of 120 at weight 200 (t = 0.004): an exact count makes it 1 masked token at weight 113, and "
        in (found.sentence)
    )
    assert "(method=fixedcount, method=ppots)" in found.sentence


@pytest.mark.parametrize(
    ("method", "largest", "words"),
    [
        ("standard", Largest(1, 1, 1, 113.0), "at weight 120 (t = 0.004): P-POTS lowers it"),
        ("lowdisc+fixedcount", Largest(1, 1), "(method=lowdisc+ppots+fixedcount)"),
        ("lowdisc+ppots+fixedcount", Largest(1, 1), "more rows per step make it count less"),
    ],
)
def test_a_remedy_that_changes_nothing_is_not_told(method, largest, words):
    rare = RARE | {"weight": 120.0, "masked": 1, "largest": largest}
    found = cause_of(led([row(0, 0.94, **rare), *others()], [0]), replace(CALM, method=Method.parse(method)))
    assert words in found.sentence
    assert "exact count" not in found.sentence


def test_of_several_views_the_one_of_the_largest_weight_is_told():
    """A complement masks every token once over both views, which says nothing of the view that weighs."""
    rare = RARE | {"masked": 120, "weight": 120.0, "largest": Largest(2, 1)}
    found = cause_of(
        led([row(0, 0.94, **rare), *others()], [0]), replace(CALM, method=Method.parse("lowdisc+complement"))
    )
    assert "one row with 1 masked token of 120 in one of 2 views at weight 120" in found.sentence


def test_blocks_are_told_of_the_row_that_they_belong_to():
    """Two rows lead, the first by its label and two others by their draw, which together have more of the step."""
    rows = [row(0, 0.4, **BAD), row(1, 0.3, **RARE), row(2, 0.25, **RARE), *[row(i, 0.01) for i in range(3, 12)]]
    block = Part("7", 0.2, 3.0, t=0.3, masked=1, maskable=4, largest=Largest(1, 1))
    found = cause_of(led(rows, [0, 1, 2], blocks=[block]), CALM)
    assert found.kind == DRAW
    assert found.sentence.startswith(
        "55 % of step 40 is 2 rows alike, the largest with 3 masked tokens of 120 at weight"
    )
    assert "block" not in found.sentence
    assert "(method=fixedcount, method=ppots). 40 % more is one row whose NLL is 12 nats" in found.sentence
    assert "rows.jsonl:1, and correct it" in found.sentence


def test_a_bad_row_at_a_rare_draw_is_named_too():
    found = cause_of(led([row(0, 0.94, **RARE | {"usual_nll": 12.0}), *others()], [0]), CALM)
    assert found.kind == DRAW
    assert found.sentence.endswith("Its usual NLL is 12 too, where the other rows' is 2: look at rows.jsonl:1.")


def test_a_short_response_is_none_where_every_token_counts_alike():
    short = RARE | {"maskable": 1, "masked": 1, "largest": Largest(1, 1, 1, 1.0)}
    found = led([row(0, 0.94, **short), *others()], [0])
    assert cause_of(found, CALM).kind == SHORT
    by_token = Method.parse("standard", objective=Objective(normalization="token"))
    assert cause_of(found, replace(CALM, method=by_token)).kind == DRAW


def test_two_bad_rows_of_four_lead_together():
    assert leading_rows([0.47, 0.02, 0.49, 0.02]) == [2, 0]
    assert leading_rows([0.4, 0.3, 0.15, 0.15]) == [], "an ordinary step"
    rows = [row(0, 0.49, **BAD), row(1, 0.47, **BAD), row(2, 0.02), row(3, 0.02)]
    found = cause_of(led(rows, [0, 1]), CALM)
    assert found.kind == LABEL
    assert found.sentence.startswith("96 % of step 40 is 2 rows whose NLL is 12 nats per token under any mask, where")


def test_two_bad_rows_of_four_are_no_model_that_gets_worse():
    rows = [row(0, 0.49, **BAD), row(1, 0.47, **BAD), row(2, 0.02), row(3, 0.02)]
    assert cause_of(Analysis(rows), CALM).kind == SPREAD
    worse = [row(i, 0.25, usual_nll=2.7) for i in range(4)]
    assert cause_of(Analysis(worse), CALM).kind == DIVERGING


def test_what_the_loss_was_long_ago_does_not_hide_that_it_rises():
    """A model that came from 6 to 1 within the window, and is at 2 now: the mean of the whole window is above that."""
    losses = [6.0 - 5.0 * i / 60 for i in range(60)] + [1.0] * 40
    found = cause_of(Analysis([row(i, 0.25) for i in range(4)]), replace(CALM, losses=losses))
    assert found.kind == DIVERGING
    assert "the rows' NLL is 2 where the mean loss was 1." in found.sentence


@pytest.mark.parametrize(
    ("change", "earlier", "kind", "words"),
    [
        (BAD, 2.0, LABEL, "where the mean loss before it was 2, at an ordinary weight (2): look at rows.jsonl:1"),
        (BAD, 12.0, DIVERGING, "has one row, and it is not that row alone: the NLL of other rows is 12 where"),
        (RARE, 2.0, DRAW, "an exact count makes it 1 masked token at weight 113"),
        (BAD | {"usual_nll": 2.0}, 2.0, ROW, "whose gradient is 15 times the median norm under any mask"),
        (BAD, None, LABEL, "look at rows.jsonl:1"),
    ],
)
def test_a_step_of_one_row_is_held_against_the_steps_before_it(change, earlier, kind, words):
    found = cause_of(led([row(0, 1.0, **change)], [0], without=0.0, other_nll=earlier), CALM)
    assert found.kind == kind
    assert words in found.sentence
    assert "other rows'" not in found.sentence


def test_a_short_response_alone_in_its_step():
    short = {"norm": 30.0, "usual_norm": 30.0, "maskable": 1, "masked": 1, "weight": 1.0, "largest": Largest(1, 1)}
    found = cause_of(led([row(0, 1.0, **short)], [0], without=0.0, other_nll=2.0, other_maskable=120), CALM)
    assert found.kind == SHORT
    assert "a response of one token, where the others have 120, at weight 1" in found.sentence


def test_a_step_of_one_row_after_norms_that_rose_is_the_learning_rate():
    rising = replace(CALM, norms=[2.0] * 37 + [6.0, 9.0, 14.0])
    found = cause_of(led([row(0, 1.0, **BAD)], [0], without=0.0), rising)
    assert found.kind == DIVERGING
    assert "the norms rose before it (6, 9, 14)" in found.sentence


def test_an_autoregressive_model_masks_nothing():
    plain = replace(CALM, method=Method.parse("autoregressive"))
    whole = {"t": 1.0, "masked": 120, "weight": 1.0, "largest": Largest(1, 120)}
    label = cause_of(led([row(0, 0.94, **BAD | whole), *others()], [0]), plain)
    assert label.kind == LABEL
    calm = cause_of(led([row(0, 0.94, **whole), *others()], [0]), replace(plain, norm=2.0))
    for found in (label, calm):
        assert "mask" not in found.sentence
