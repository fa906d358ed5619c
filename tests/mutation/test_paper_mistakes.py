"""Each mistake of docs/published_mistakes.md is injected once, by its number; a check of ours must notice.

Mistakes 2, 4 and 12 concern the fit, the probe and the trainer, and are injected beside their tests.
"""

import re
from array import array
from dataclasses import replace

import pytest
import torch

from stabledllm import loss
from stabledllm.data import holding_out
from stabledllm.data import rows as rows_module
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.maskers import ISAD, Bernoulli, FixedCount
from stabledllm.noise.methods import Draw
from stabledllm.noise.schedule import p_mask
from stabledllm.noise.views import Mirror, MultiSample
from stabledllm.tasks import numbers, scoring, synthetic
from tests.checks.data import (
    TOKENIZER,
    check_end_token,
    check_hold_out,
    check_nothing_is_cut,
    check_padding,
    check_synthetic_splits,
    check_syrm,
)
from tests.checks.loss import check_dropped_nowhere
from tests.checks.moments import check_case
from tests.checks.noise import (
    check_density,
    check_isad_weights,
    check_mirror,
    check_only_maskable,
    check_support,
    check_weight_by_drawing,
    check_weight_integral,
)
from tests.checks.scoring import check_all_verdicts
from tests.mutation.inject import noticed, wrap
from tests.statistical.cases import FITTED, case

pytestmark = pytest.mark.long

T = 30
"""Number of rates in the public code's grid."""


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_1_mirror_with_an_independent_second_mask(t, monkeypatch):
    monkeypatch.setattr(Mirror, "uniforms", lambda _, *args: MultiSample(2).uniforms(*args))
    noticed(check_mirror, t, match="joint coverage")
    noticed(check_case, case("mirror"), match="variance of the loss")


def test_1_mirror_with_the_same_mask_twice(monkeypatch):
    """Both marginals are right; the correlation is 1."""

    def same(_, key, rows, index):
        u = MultiSample(2).uniforms(key, rows, index)[:, 0]
        return torch.stack((u, u), dim=1)

    monkeypatch.setattr(Mirror, "uniforms", same)
    noticed(check_mirror, 0.5, match="joint coverage")


def test_3_t_only_from_the_inside_of_a_grid(monkeypatch):
    wrap(monkeypatch, Uniform, "icdf", lambda u, *_: 1 / T + (1 - 2 / T) * u)
    noticed(check_support, Uniform(), match="least t")
    noticed(check_density, Uniform(), match="do not follow")
    noticed(check_case, case("standard"), match="mean of|variance of")


def test_3_fitted_t_only_from_the_inside_of_a_grid(monkeypatch):
    """p is normalised over [0, 1] but drawn on [1/T, 1 - 1/T]: E[weight] is not 1."""
    ends_heavy = Tabulated([9.0, *[1.0] * 28, 9.0])
    wrap(monkeypatch, Tabulated, "icdf", lambda t, *_: t.clamp(1 / T + 1e-9, 1 - 1 / T - 1e-9))
    noticed(check_support, ends_heavy, match="t")
    noticed(check_weight_integral, ends_heavy, match=r"E\[weight\]")
    noticed(check_weight_by_drawing, "standard", ends_heavy, match="weight")


def test_5_losses_clamped_at_10(monkeypatch):
    wrap(monkeypatch, loss, "row_losses", lambda losses, *_: losses.clamp(max=10.0))
    noticed(check_case, case("standard", eps=1e-3), with_variance=False, match="mean of")


def test_6_rows_without_a_mask_dropped_from_the_mean(monkeypatch):
    def over_masked_rows(loss, row_weight, step_weight):
        return (loss * row_weight).sum() / row_weight[loss > 0].sum()

    monkeypatch.setattr(loss, "reduce_loss", over_masked_rows)
    noticed(check_dropped_nowhere, match="came out as 3")


def test_7_over_length_rows_truncated(monkeypatch):
    def cut(row, example, tokenizer, options, *_):
        return replace(row, input_ids=row.input_ids[: options.max_len])

    wrap(monkeypatch, rows_module, "_encode", cut)
    noticed(check_nothing_is_cut, match="dropped")


def test_8_no_end_token(monkeypatch):
    wrap(monkeypatch, rows_module, "_encode", lambda row, *_: replace(row, input_ids=row.input_ids[:-1]))
    noticed(check_end_token)


def test_8_no_chat_template(monkeypatch):
    original = rows_module._encode

    def bare(example, tokenizer, *args):
        text = TOKENIZER.encode(example["messages"][0]["content"])
        row = original(example, tokenizer, *args)
        return replace(row, input_ids=[*text, *row.input_ids[row.prompt_length :]], prompt_length=len(text))

    monkeypatch.setattr(rows_module, "_encode", bare)
    noticed(check_end_token)


@pytest.mark.parametrize("name", ["attention_mask", "maskable"])
def test_8_and_9_padding_attended_or_maskable(name, monkeypatch):
    def with_padding(batch, rows, *_):
        width = batch["input_ids"].shape[1]
        start = torch.tensor([0 if name == "attention_mask" else r.prompt_length for r in rows])
        return {**batch, name: torch.arange(width)[None] >= start[:, None]}

    wrap(monkeypatch, rows_module, "collate", with_padding)
    noticed(check_padding)


@pytest.mark.parametrize(("masker", "text"), [(Bernoulli, "mirror"), (ISAD, "isad-exact"), (FixedCount, "fixedcount")])
def test_9_masker_that_masks_padding(masker, text, monkeypatch):
    original = masker.__call__

    def everywhere(self, given):
        rows = replace(given.rows, maskable=torch.ones_like(given.rows.maskable))
        return original(self, replace(given, rows=rows))

    monkeypatch.setattr(masker, "__call__", everywhere)
    noticed(check_only_maskable, text, match="not maskable")


def test_9_isad_divides_by_q_and_multiplies_by_p_over_q(monkeypatch):
    def twice(result, masker, given):
        mask, coefficient, weight = result
        p = p_mask(given.t, given.objective.eps)[:, None]
        q = torch.where(given.rows.delimiter, (p + masker.delta).clamp(max=1.0), p)
        return mask, coefficient * (p / q)[:, None], weight

    wrap(monkeypatch, ISAD, "__call__", twice)
    noticed(check_isad_weights, match="weight of a delimiter")
    noticed(check_case, case("isad"), match="mean of")


def test_9_syrm_restores_the_prompt_after_masking(monkeypatch):
    def restored(result, draw, input_ids, mask_token_id):
        noisy, mask, source = result
        return torch.cat((input_ids[source][:, :5], noisy[:, 5:]), dim=1), mask, source

    wrap(monkeypatch, Draw, "noisy", restored)
    noticed(check_syrm, match="share masked")


def test_9_syrm_leaves_the_maskable_set_as_it_was(monkeypatch):
    original = rows_module.collate
    monkeypatch.setattr(rows_module, "collate", lambda rows, pad_id, syrm=False: original(rows, pad_id))
    noticed(check_syrm, match="share masked")


def test_10_synthetic_splits_that_overlap(monkeypatch):
    class AnySplit:
        def __eq__(self, other):
            return True

    monkeypatch.setattr(synthetic, "split_of", lambda prompt: AnySplit())
    noticed(check_synthetic_splits, match="share")


def test_10_hold_out_that_parts_identical_prompts(monkeypatch):
    monkeypatch.setattr(holding_out, "groups_of", lambda examples: array("q", range(len(examples))))
    monkeypatch.setattr(holding_out, "content", repr)
    noticed(check_hold_out, match="both sides")


def integers_only(text: str) -> str | None:
    found = re.findall(r"####\s*\$?(-?\d+)", text)
    return found[-1] if found else None


def no_commas(text: str) -> str | None:
    found = re.findall(r"####\s*\$?([-+]?\d*\.?\d+)", text)
    return found[-1] if found else None


@pytest.mark.parametrize("parse", [integers_only, no_commas])
def test_11_numbers_read_in_part(parse, monkeypatch):
    """1,234 read as 1; 2.5 read as 2."""
    monkeypatch.setattr(scoring, "parse_answer", parse)
    noticed(check_all_verdicts)


def test_11_answers_compared_as_text(monkeypatch):
    """18.0 is not 18."""
    monkeypatch.setattr(numbers, "same", str.__eq__)
    noticed(check_all_verdicts, match=r"18")


def test_11_nothing_equals_nothing(monkeypatch):
    def compare(completion, gold):
        answer, expected = scoring.parse_answer(completion), scoring.parse_answer(gold)
        return scoring.Scored(answer, answer == expected)

    monkeypatch.setattr(scoring, "score_number", compare)
    noticed(check_all_verdicts)


def test_no_mistake_no_alarm():
    """The cheap checks above pass on the library as it is (the costly ones are tests of their own)."""
    check_dropped_nowhere()
    check_end_token()
    check_padding()
    check_all_verdicts()
    check_weight_integral(Tabulated(FITTED))
