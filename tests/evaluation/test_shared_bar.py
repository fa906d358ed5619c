"""The first rank's bar stands for all ranks, and ends at the whole of the work."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from stabledllm.evaluation import progress
from stabledllm.evaluation.progress import shared_bar


@pytest.mark.parametrize(("shares", "counted"), [(1, [3, 2, 2, 2]), (2, [3, 4, 3, 0])])
def test_others_are_taken_to_be_as_far(monkeypatch, shares, counted):
    shown: list[int] = []

    @contextmanager
    def bar(total, what, unit):
        yield SimpleNamespace(update=shown.append)

    monkeypatch.setattr(progress, "bar", bar)
    with shared_bar(10, "generate", "problem", SimpleNamespace(shares=shares)) as count:
        for done in (3, 2, 2, 2):  # the first is of what was on disk, which is no rank's share
            count(done)
    assert shown == counted
