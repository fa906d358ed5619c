"""How many runs go at the same time: what was asked for, or what the machine has."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.experiment.planned import runs_of
from stabledllm.experiment.side_by_side import PROCESS, SideBySide, side_by_side
from stabledllm.models.shapes import shape_of
from stabledllm.planning.layout import Layout
from stabledllm.planning.memory import estimate
from tests.fakes.study import settings


@pytest.fixture
def runs(tmp_path):
    return [run.settings for run in runs_of(settings(tmp_path))]


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Six CPU threads, no GPU, memory for everything."""
    _machine(monkeypatch)


def _machine(monkeypatch, threads: int = 6, gpus: int = 0, free: float = 1e12):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))


def test_a_number_is_taken_as_it_is(runs):
    assert side_by_side(runs, 4, "9", ["0"]) == SideBySide(9, ("0",))


@pytest.mark.parametrize("word", ["0", "-1", "two", "1.5", ""])
def test_another_word_is_refused(runs, word):
    with pytest.raises(UserError, match="expected --jobs auto or a number of at least 1, found"):
        side_by_side(runs, 4, word, [])


@pytest.mark.parametrize(("threads", "count", "expected"), [(1, 4, 1), (2, 4, 2), (6, 4, 4), (6, 100, 6)])
def test_one_run_a_thread_and_no_more_than_there_are(monkeypatch, runs, threads, count, expected):
    _machine(monkeypatch, threads)
    assert side_by_side(runs, count, "auto", []) == SideBySide(expected)


def test_no_more_than_memory_holds(monkeypatch, runs):
    _machine(monkeypatch, free=0.5 * PROCESS)
    assert side_by_side(runs, 6, "auto", []).jobs == 1
    each = PROCESS + max(estimate(run, shape_of("tiny"), Layout()).needed for run in runs)
    _machine(monkeypatch, free=3.5 * each)
    assert side_by_side(runs, 6, "auto", []).jobs == 3


def test_a_model_of_unknown_size_runs_alone(runs):
    unknown = [run.model_copy(update={"model": "nobody/knows"}) for run in runs]
    assert side_by_side(unknown, 6, "auto", []) == SideBySide(1)


def test_one_a_gpu(monkeypatch, runs):
    _machine(monkeypatch, gpus=4)
    assert side_by_side(runs, 8, "auto", []) == SideBySide(4, ("0", "1", "2", "3"))
    assert side_by_side(runs, 8, "auto", ["2", "3"]) == SideBySide(2, ("2", "3"))
    _machine(monkeypatch, gpus=1)
    assert side_by_side(runs, 8, "auto", []) == SideBySide(1)


def test_a_run_on_the_cpu_needs_no_gpu(monkeypatch, runs):
    _machine(monkeypatch, gpus=4)
    on_cpu = [run.model_copy(update={"trainer": {"use_cpu": True}}) for run in runs]
    assert side_by_side(on_cpu, 8, "auto", []) == SideBySide(6)


def test_it_says_what_each_has():
    assert SideBySide(3).sentence() == "3 runs at a time, each with 2 CPU threads"
    assert SideBySide(2, ("0", "1")).sentence() == "2 runs at a time, on 2 accelerators"
