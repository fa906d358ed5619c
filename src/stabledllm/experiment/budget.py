"""Chooses each method's rows per step and steps, so that all make Standard's training forwards to within one step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.rows import TokenRow, maskable_sizes
from stabledllm.errors import UserError
from stabledllm.experiment.compared import of_responses
from stabledllm.experiment.needed import refuse_views
from stabledllm.forward.chosen import further_forwards
from stabledllm.models.names import blocks_from_start
from stabledllm.noise.blocks import mean_forwards_in_blocks
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import STANDARD
from stabledllm.noise.streams import Key
from stabledllm.training.ordering import EpochOrder

_LONG = torch.tensor([2**20])
"""Maskable tokens of a response, assumed while the rows are not known."""


def run_share(
    method: Method,
    seed: int,
    settings: ExperimentSettings,
    sampler: TSampler | None,
    rows: Sequence[TokenRow],
    multiple: float = 1.0,
) -> dict:
    """The settings of one run that ``equal`` decides: ``batch``, and with equal compute ``steps`` and ``trainer``.

    A step has as many rows as cost the batch in forwards, by the method's mean cost; the steps are as many as bring the
    forwards nearest to Standard's. The forwards are counted from the draws that the run will make, which are known in
    advance; for an adaptive density, which is not, from the uniform one that it starts from. Those that choose tokens
    (``lift``, ``gift``) count by their mean, in Standard's as well.

    Args:
        multiple: of Standard's forward passes, for Standard alone; its schedule spans the steps of its own run.
    """
    base = settings.base
    if multiple != 1:
        steps, once = steps_at(multiple, base, rows), steps_at(1.0, base, rows)
        return {"batch": base.batch, "steps": steps, "trainer": _stretched(base.trainer, steps / once)}
    if _equal_anyway(settings):
        return {"batch": base.batch}
    size, lead = maskable_sizes(rows, method), _leads(rows, base)
    batch = rows_per_step(method, settings, sampler, size, lead)
    order_seed = seed if base.order_seed is None else base.order_seed
    spent = forwards_by_step(
        method, method.sampler(sampler or Uniform()), size, batch, seed, order_seed, base.block_size, lead,
        one_t=base.block_t == "row",
    )  # fmt: skip
    standard = standard_steps(base, len(rows))
    budget = rows_seen(standard, base.batch, len(rows)) * (1 + _further_of_standard(method, size))
    steps = steps_nearest(budget, spent)
    return {"batch": batch, "steps": steps, "trainer": _stretched(base.trainer, steps / standard)}


def _equal_anyway(settings: ExperimentSettings) -> bool:
    """Whether all methods have the same rows and steps: as asked, or as responses have a budget of their own."""
    return settings.equal == "steps" or of_responses(settings.base)


def rows_per_step(
    method: Method, settings: ExperimentSettings, sampler: TSampler | None = None, size: Tensor = _LONG,
    lead: Tensor | int = 0,
) -> int:  # fmt: skip
    """Rows of an optimizer step; with ``equal: compute`` the batch divided by the mean forwards of a row.

    Args:
        sampler: the fitted density of t; uniform without it. size: maskable tokens P of each row; long without it.
        lead: in blocks, tokens of the prompt in each row's first block with a response.

    Raises:
        UserError: every row uses all views of the method, and their number does not divide the batch.
    """
    base = settings.base
    if _equal_anyway(settings):
        return base.batch
    plain = _further_of_standard(method, size)
    if not _varies(method, size) and not plain:
        views = method.views.count
        refuse_views(method.name, views, base.batch)
        return base.batch // views
    if base.block_schedule:
        raise UserError(
            f"key 'base.block_schedule': expected none beside equal=compute with method '{method.name}', whose "
            f"forwards depend on the block size; write equal=steps, or leave the method out."
        )
    density = method.sampler(sampler or Uniform())
    if base.block_size:
        cost = mean_forwards_in_blocks(method.views, density, size, base.block_size, lead)
    else:
        cost = method.views.mean_forwards(density, size) + further_forwards(method, density, size)
    cost /= 1 + plain
    whole = base.micro_batch or 1
    return max(1, round(base.batch / cost / whole)) * whole


def standard_steps(base: TrainSettings, rows: int) -> int:
    """Optimizer steps of a run with one view per row: ``steps``, or what transformers computes from ``epochs``."""
    return base.steps or math.ceil(base.epochs * math.ceil(rows / base.batch))


def steps_at(multiple: float, base: TrainSettings, rows: Sequence[TokenRow]) -> int:
    """The steps, at least 1, in which Standard sees as nearly as can be a multiple of the rows that it sees by itself.

    It makes one forward pass a row, so that its forwards are that multiple too. Of streamed rows, whose number is not
    known, every step is a full one.
    """
    if base.data.streaming:
        return max(1, round(multiple * base.steps))
    count, batch = len(rows), base.batch
    budget = multiple * rows_seen(standard_steps(base, count), batch, count)
    epochs, rest = divmod(budget, count)
    whole, of_epoch = int(epochs) * math.ceil(count / batch), math.ceil(count / batch)
    near = {whole + min(int(rest // batch) + more, of_epoch) for more in (0, 1)}
    return max(1, min(sorted(near), key=lambda steps: abs(rows_seen(steps, batch, count) - budget)))


def rows_seen(steps: int, batch: int, rows: int) -> int:
    """Rows seen in a number of steps; the last step of an epoch has only the rows that are left."""
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
    lead: Tensor | None = None,
    one_t: bool = False,
) -> Iterator[float]:
    """Yields the forwards of steps 0, 1, ... of a run, from the draws that training will make, without end.

    Args:
        size: maskable tokens P of each row, shape (rows,). lead: in blocks, tokens of the prompt in each row's first
            block with a response, shape (rows,); 0 without it. one_t: one t for all blocks of a row.
    """
    lead = torch.zeros_like(size) if lead is None else lead
    rows, varies = len(size), _varies(method, size)
    further = further_forwards(method, sampler, size)
    for step in itertools.count():
        first = step % math.ceil(rows / batch) * batch
        if not varies:
            yield (method.views.count + further) * min(batch, rows - first)
            continue
        if first == 0:
            order = [row for row, _ in EpochOrder(rows, batch, order_seed, lambda at=step: at)]
        own = order[first : first + batch]
        views = _forwards(method, sampler, size[own], Key(noise_seed, step), block_size, lead[own], one_t)
        yield views + further * len(own)


def steps_nearest(budget: float, forwards: Iterator[float]) -> int:
    """The number of steps, at least 1, whose total forwards are nearest to the budget."""
    spent, steps = next(forwards), 1
    while spent < budget:
        more = next(forwards)
        if spent + more - budget > budget - spent:
            break
        spent, steps = spent + more, steps + 1
    return steps


def _further_of_standard(method: Method, size: Tensor) -> float:
    """Mean forwards by which Standard, under a method's objective, chooses a row's tokens; 0 for most objectives."""
    return further_forwards(Method.parse(STANDARD, objective=method.objective), Uniform(), size)


def _varies(method: Method, size: Tensor) -> bool:
    """Whether the number of views that a row uses depends on its t and P; else it uses all."""
    return bool((method.views.reach(size) < 1).any())


def _leads(rows: Sequence[TokenRow], base: TrainSettings) -> Tensor:
    """The tokens of the prompt in each row's first block with a response, int64, shape (rows,)."""
    size = base.block_size if base.block_size and blocks_from_start(base.model) else 1
    return torch.tensor([row.prompt_length % size for row in rows])


def _forwards(
    method: Method, sampler: TSampler, size: Tensor, key: Key, block_size: int | None, lead: Tensor, one_t: bool
) -> int:
    """The number of views that the rows of a step use; in blocks, a row uses the views that any of its blocks uses."""
    units = [
        (i, min(at + (block_size or p), p) - max(at, 0))
        for i, (p, before) in enumerate(zip(size.tolist(), lead.tolist(), strict=True))
        for at in range(-before, p, block_size or p)
    ]
    row, tokens = torch.tensor(units).unbind(1)
    u = method.source.uniforms(key, len(size) if one_t else len(units), torch.device("cpu"))
    t = sampler.icdf(u[row] if one_t else u)
    active = method.views.active(t, tokens).long()
    return int((active.new_zeros(len(size), active.shape[1]).index_add_(0, row, active) > 0).sum())


def _stretched(trainer: dict, share: float) -> dict:
    """The trainer keys with warm-up and decay, where given in steps, scaled to the same share of the new steps."""

    def scaled(keys: dict, *names: str) -> dict:
        given = {name: keys[name] for name in names if isinstance(keys.get(name), int | float) and keys[name] >= 1}
        return keys | {name: max(1, int(value * share)) for name, value in given.items()}

    if share == 1:
        return trainer
    out = scaled(trainer, "warmup_steps")
    if isinstance(kwargs := trainer.get("lr_scheduler_kwargs"), dict):
        out["lr_scheduler_kwargs"] = scaled(kwargs, "num_decay_steps", "num_stable_steps", "num_warmup_steps")
    return out
