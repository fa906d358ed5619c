"""What a gradient costs beside a loss, measured on a first batch, so that the time of all can be said beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from stabledllm.gradient.per_row import RowGradients
from stabledllm.lab.measure.laboratory import Laboratory
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key

_STEP = 0x71AE


def gradient_cost(lab: Laboratory, standard: Method) -> float:
    """Seconds of a row's gradient over those of its loss, from a batch of each, by draws of their own."""
    meter = lab.gradients(standard).meter
    meter.progress = None  # what is measured twice counts once
    length = max(1, int(lab.meter.lengths.max()))
    per_batch = max(1, meter.tokens_per_batch // length) if isinstance(meter, RowGradients) else 2
    row = torch.full((2 * per_batch,), int(lab.meter.lengths.argmax()))
    t = (torch.arange(len(row), dtype=torch.float64) + 0.5) / len(row)
    key, told = Key(lab.options.seed, _STEP), lab.meter.progress
    lab.meter.progress, before = None, lab.meter.forwards
    try:
        loss = min(_seconds(lambda: lab.meter.losses(row, t, standard, key)) for _ in range(2)) / len(row)
    finally:
        lab.meter.progress, lab.meter.forwards = told, before
    batches = meter.gradients(row[: per_batch * 2], t, standard, key)
    first = next(batches)  # it is also checked against autograd, which takes longer
    seconds = _seconds(lambda: next(batches, None))
    if len(first.index) == len(row):
        seconds = _seconds(lambda: next(meter.gradients(row, t, standard, key), None))
        return max(1.0, seconds / len(row) / loss)
    return max(1.0, seconds / (len(row) - len(first.index)) / loss)


def _seconds(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started
