"""The forward passes of a measurement, stage by stage, before it begins.

Where t decides how many views a row has, or whether the model is asked for its tokens, they are means under uniform t.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch

from stabledllm.data.rows import TokenRow, maskable_sizes
from stabledllm.forward.chosen import further_forwards
from stabledllm.gradient.nested_masks import MASKS_PER_ROW
from stabledllm.gradient.nested_rows import MASKS
from stabledllm.gradient.paired import points_of_pairs
from stabledllm.gradient.predicted import profile_method
from stabledllm.gradient.profile import points_of
from stabledllm.lab.measure.chosen_gradient import rows_of
from stabledllm.lab.measure.options import DecomposeOptions, ProbeOptions
from stabledllm.lab.measure.progress import Stage
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.windows import CHOSEN
from stabledllm.ppots.profile import rate_edges
from stabledllm.variance.blocks import given_hidden
from stabledllm.variance.drawn import step_rows

ADAM = "gradient: Adam's second moments"
_LONG = torch.tensor([2**20])
ABC, GRADIENT_ABC, PROBE = "A, B, C", "gradient: A, B, C", "probe"
SPLIT = "gradient: targets and context"


def gradient_stage(method: Method) -> str:
    """The name of the stage that measures a method's gradient."""
    return f"gradient: {method.name}"


def loss_stages(
    options: DecomposeOptions, methods: Sequence[Method], rows: Sequence[TokenRow], *, in_blocks: bool = False
) -> list[Stage]:
    """The stages that measure the loss; the first method is Standard.

    Args:
        in_blocks: whether every density is fitted to a probe of its own, that of blocks.
    """
    standard = methods[0]
    evaluations = min(options.rows, len(rows)) * _cells(options, standard) * options.masks
    stages = [Stage(ABC, round(evaluations * (1 + _choosing(standard))))]
    probed = set()

    def probe(method: Method) -> int:
        key = (method.masker, method.views, method.syrm)
        if key in probed:
            return 0
        probed.add(key)
        return probe_of_losses(method, options.probe, len(rows))

    mirror = Method.parse("mirror", standard.options, standard.objective)
    stages.append(Stage(PROBE, probe(mirror) + probe(standard)))
    for method in methods:
        own = method.needs_p and (in_blocks or method.signal != "loss")
        probes = probe_forwards(method, options.probe, rows) if own else 0
        probes += 0 if in_blocks else probe(method)
        stages.append(Stage(method.name, probes + _drawn(options, method, rows, options.steps)))
    return stages


def forwards_of_losses(options: DecomposeOptions, methods: Sequence[Method], rows: int) -> int:
    """The forward passes that measure the loss where no row has been read yet; the first method is Standard.

    Args:
        rows: how many there will be at most.
    """
    mirror = Method.parse("mirror", methods[0].options, methods[0].objective)
    probed = {(method.masker, method.views, method.syrm): method for method in (*methods, mirror)}
    probes = sum(probe_of_losses(method, options.probe, rows) for method in probed.values())
    nested = min(options.rows, rows) * _cells(options, methods[0]) * options.masks
    return round(nested * (1 + _choosing(methods[0]))) + probes + options.steps * options.forwards * len(methods)


def _cells(options: DecomposeOptions, standard: Method) -> int:
    """The rates at which each row is measured for A, B and C."""
    return len(rate_edges(options.rates, standard.objective.floor)) - 1 if options.design == "cells" else options.rates


def gradient_stages(
    options: DecomposeOptions,
    methods: Sequence[Method],
    rows: Sequence[TokenRow],
    units: Sequence[TokenRow] | None = None,
) -> list[Stage]:
    """The stages that measure the gradient, after those of the loss.

    Args:
        units: the single blocks of the rows, of a model in blocks.
    """
    grad, standard = options.grad, methods[0]
    counts, chosen = profile_method(standard), standard.objective.tokens in CHOSEN
    sizes = {"rates": grad.rates, "masks": grad.masks}
    if chosen:
        points = min(grad.rows, len(rows)) * points_of_pairs(grad.rates, standard.objective.floor)
        first = round(points * (1 + _choosing(standard)))  # about: which masks lift asks about depends on t
    else:
        first = _points(counts, units or rows, rows_of=grad.rows, **sizes)
    if units:
        first += min(options.rows, len(rows)) * grad.rates * MASKS
    split = 0 if units or chosen else min(grad.split_rows, grad.rows, len(rows)) * MASKS_PER_ROW
    stages = [
        Stage(GRADIENT_ABC, first, gradients=True),
        *([Stage(SPLIT, split, gradients=True)] if split else []),
        Stage(ADAM, round(options.forwards * grad.steps * (1 + _choosing(standard))), gradients=True),
    ]
    profiled = {counts, None}
    for method in methods:
        forwards = _drawn(options, method, rows, grad.steps)
        if units:
            forwards *= 2 if given_hidden(method) else 1
        elif (own := profile_method(method)) not in profiled:
            profiled.add(own)
            fewer = rows_of(own, grad) if chosen else min(grad.view_rows, grad.rows)
            forwards += _points(own, rows, rows_of=fewer, **sizes)
        stages.append(Stage(gradient_stage(method), forwards, gradients=True))
    return stages


def probe_forwards(method: Method, options: ProbeOptions, rows: Sequence[TokenRow]) -> int:
    """The forward passes of the probe that a method's p(t) is fitted to: of losses, or of gradients."""
    if method.signal == "loss":
        return probe_of_losses(method, options, len(rows))
    own = profile_method(method) or method
    points = _points(own, rows, rows_of=options.rows, rates=options.rates, masks=options.masks)
    return points * (2 if options.check_proxy and method.signal == "output layer" else 1)


def probe_of_losses(method: Method, options: ProbeOptions, rows: int) -> int:
    """The forward passes of a probe of losses of at most ``rows`` rows."""
    cells = len(rate_edges(options.rates, method.objective.floor, method.views.switches)) - 1
    return round(min(options.rows, rows) * cells * options.masks * (method.views.count + _choosing(method)))


def _choosing(method: Method) -> float:
    """The mean forwards of an evaluation that choose its tokens, for long responses."""
    return further_forwards(method, Uniform(), _LONG)


def _drawn(options: DecomposeOptions, method: Method, rows: Sequence[TokenRow], steps: int) -> int:
    size = maskable_sizes(rows, method)
    cost = method.views.mean_forwards(Uniform(), size) + further_forwards(method, Uniform(), size)
    return round(step_rows(method, options.forwards, cost) * steps * cost)


def _points(method: Method, rows: Sequence[TokenRow], *, rows_of: int, rates: int, masks: int) -> int:
    """Rows times points of a profile of gradients, times views."""
    known = SimpleNamespace(rows=rows, objective=method.objective)
    t = points_of(known, method, rows=rows_of, rates=rates, masks=masks, seed=0)[-1]
    return round(t.numel() * (method.views.count + _choosing(method)))
