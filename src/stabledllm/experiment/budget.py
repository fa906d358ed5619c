"""Rows a step and steps of every method, so that all make the training forwards of Standard to within one step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.rows import TokenRow, maskable_sizes
from stabledllm.errors import UserError
from stabledllm.noise.blocks import mean_forwards_in_blocks
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key
from stabledllm.training.ordering import EpochOrder

_LONG = torch.tensor([2**20])
"""Maskable tokens of a response where the rows are not known yet."""


def run_share(
    method: Method, seed: int, settings: ExperimentSettings, sampler: TSampler | None, rows: Sequence[TokenRow]
) -> dict:
    """The settings of one run that ``equal`` decides: ``batch``, and with equal compute ``steps`` and ``trainer``.

    A run takes the rows a step that cost the batch in forwards, by the method's mean cost, and the steps whose forwards
    come nearest to those of Standard. These are counted from what the run will draw, which is known before it; of an
    adaptive density, which is not, from the uniform one that it starts from.
    """
    base = settings.base
    if settings.equal == "steps":
        return {"batch": base.batch}
    size = maskable_sizes(rows, method)
    batch = rows_per_step(method, settings, sampler, size)
    order_seed = seed if base.order_seed is None else base.order_seed
    spent = forwards_by_step(
        method, method.sampler(sampler or Uniform()), size, batch, seed, order_seed, base.block_size
    )
    standard = standard_steps(base, len(rows))
    steps = steps_nearest(rows_seen(standard, base.batch, len(rows)), spent)
    return {"batch": batch, "steps": steps, "trainer": _stretched(base.trainer, steps / standard)}


def rows_per_step(
    method: Method, settings: ExperimentSettings, sampler: TSampler | None = None, size: Tensor = _LONG
) -> int:
    """Rows of an optimizer step: with ``equal: compute`` the batch divided by the mean forwards of a row.

    Args:
        sampler: the fitted density of t; uniform without it. size: maskable tokens P of each row; long without it.

    Raises:
        UserError: a batch that the views of a method do not divide, where every row uses all of them.
    """
    base = settings.base
    if settings.equal == "steps":
        return base.batch
    if not _varies(method, size):
        views = method.views.count
        if base.batch % views:
            raise UserError(
                f"key 'base.batch': expected a multiple of the {views} views of '{method.name}', found {base.batch}."
            )
        return base.batch // views
    density = method.sampler(sampler or Uniform())
    if base.block_size:
        cost = mean_forwards_in_blocks(method.views, density, size, base.block_size)
    else:
        cost = method.views.mean_forwards(density, size)
    whole = base.micro_batch or 1
    return max(1, round(base.batch / cost / whole)) * whole


def standard_steps(base: TrainSettings, rows: int) -> int:
    """Optimizer steps of a run with one view a row: ``steps``, or what transformers makes of ``epochs``."""
    return base.steps or math.ceil(base.epochs * math.ceil(rows / base.batch))


def rows_seen(steps: int, batch: int, rows: int) -> int:
    """Rows of so many steps; the last step of an epoch has what is left of it."""
    epochs, rest = divmod(steps, math.ceil(rows / batch))
    return epochs * rows + min(rest * batch, rows)


def forwards_by_step(
    method: Method,
    sampler: TSampler,
    size: Tensor,
    batch: int,
    noise_seed: int,
    order_seed: int,
    block_size: int | None = None,
) -> Iterator[int]:
    """Forward rows of step 0, 1, ... of a run, from the draws that training makes, without end.

    Args:
        size: maskable tokens P of each row, shape (rows,).
    """
    rows, varies = len(size), _varies(method, size)
    for step in itertools.count():
        first = step % math.ceil(rows / batch) * batch
        if not varies:
            yield method.views.count * min(batch, rows - first)
            continue
        if first == 0:
            order = [row for row, _ in EpochOrder(rows, batch, order_seed, lambda at=step: at)]
        yield _forwards(method, sampler, size[order[first : first + batch]], Key(noise_seed, step), block_size)


def steps_nearest(budget: int, forwards: Iterator[int]) -> int:
    """The number of steps, at least 1, whose forwards add up to what is nearest to the budget."""
    spent, steps = next(forwards), 1
    while spent < budget:
        more = next(forwards)
        if spent + more - budget > budget - spent:
            break
        spent, steps = spent + more, steps + 1
    return steps


def _varies(method: Method, size: Tensor) -> bool:
    """Whether rows use as many views as their t and P say, rather than all."""
    return bool((method.views.reach(size) < 1).any())


def _forwards(method: Method, sampler: TSampler, size: Tensor, key: Key, block_size: int | None) -> int:
    """Views that the rows of a step use; of a row in blocks, those that any of its blocks uses."""
    units = [
        (i, min(block_size or p, p - at)) for i, p in enumerate(size.tolist()) for at in range(0, p, block_size or p)
    ]
    row, tokens = torch.tensor(units).unbind(1)
    t = sampler.icdf(method.source.uniforms(key, len(units), torch.device("cpu")))
    active = method.views.active(t, tokens).long()
    return int((active.new_zeros(len(size), active.shape[1]).index_add_(0, row, active) > 0).sum())


def _stretched(trainer: dict, share: float) -> dict:
    """Warm-up and decay that are given in steps, over the same share of another number of steps."""

    def scaled(keys: dict, *names: str) -> dict:
        given = {name: keys[name] for name in names if isinstance(keys.get(name), int | float) and keys[name] >= 1}
        return keys | {name: max(1, int(value * share)) for name, value in given.items()}

    if share == 1:
        return trainer
    out = scaled(trainer, "warmup_steps")
    if isinstance(kwargs := trainer.get("lr_scheduler_kwargs"), dict):
        out["lr_scheduler_kwargs"] = scaled(kwargs, "num_decay_steps", "num_stable_steps", "num_warmup_steps")
    return out
