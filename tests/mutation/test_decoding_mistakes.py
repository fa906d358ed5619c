"""Mistakes in decoding in blocks that a comparison with the published loops notices."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from stabledllm.decoding import choice, state
from stabledllm.decoding.blocks import BlockState
from stabledllm.decoding.state import State
from tests.checks.block_decoding import check
from tests.decoding import block_references as references
from tests.mutation.inject import noticed

pytestmark = pytest.mark.long

SDAR = partial(references.sdar, strategy="dynamic", steps=4, threshold=0.1)
FAST = partial(references.fast_dllm, sub_block=2, threshold=1.0)


def of_sdar(**options) -> None:
    check("sdar", partial(SDAR, **options), 0, threshold=0.1, **options)


def of_fast_dllm() -> None:
    check("fast-dllm", FAST, 0, threshold=1.0, sub_block=2)


def test_blocks_that_begin_one_token_early(monkeypatch):
    lead = BlockState.lead.fget
    monkeypatch.setattr(BlockState, "lead", property(lambda self: (lead(self) + 1) % self.options.block))
    noticed(of_sdar, match="none")


def test_keys_and_values_of_a_finished_block_from_before_it_was(monkeypatch):
    monkeypatch.setattr(BlockState, "first_span", lambda self, block: BlockState.later_span(self, block))
    noticed(of_sdar, match="prefix")


def test_confidence_after_the_cut(monkeypatch):
    of_sdar(top_p=0.05)

    def cut(logits, options, uniforms, last=()):
        return choice.choose(logits, replace(options, schedule="dream"), uniforms, last)

    monkeypatch.setattr(state, "choose", cut)
    noticed(of_sdar, top_p=0.05, match="none")


def test_a_last_block_that_ends_with_the_answer(monkeypatch):
    monkeypatch.setattr(BlockState, "extent", State.extent)
    noticed(of_sdar, match="none")


def test_a_first_token_that_waits_for_its_turn(monkeypatch):
    monkeypatch.setattr(BlockState, "begin", State.begin)
    noticed(of_fast_dllm, match="none")


def test_sub_blocks_that_are_not_kept_apart(monkeypatch):
    def whole(self, block, part):
        place, start = self.place + self.lead, block * self.options.block
        return (place >= start) & (place < start + self.options.block)

    monkeypatch.setattr(State, "within", whole)
    noticed(of_fast_dllm, match="none")
