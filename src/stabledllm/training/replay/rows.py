"""The rows of a rebuilt step, one at a time: the same draws as in the step, and others to compare them with.

Legend: K views, L positions of one row; U its blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.loss import reduce_loss
from stabledllm.noise.blocks import BlockDraw
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method
from stabledllm.noise.streams import Key
from stabledllm.noise.takes import EXACT, exact_or_standard
from stabledllm.training.trainer import MDMTrainer

REDRAWS, BESIDE = 4, 4
"""Draws that say what a row's loss and gradient usually are; and rows of other steps that are asked at most."""
_REDRAWN = 0x5B1C_0000
"""Number of the step that they are drawn for, which no run comes to."""


@dataclass(frozen=True)
class OneRow:
    """One row of the step as a micro-batch of its own."""

    row: TokenRow
    position: int
    inputs: dict


@dataclass(frozen=True)
class Forwarded:
    """A row's forward pass: what each token adds to the row's loss, (K, L), and the row's part of the step's loss."""

    tokens: Tensor | None
    """None where it is drawn and nothing else, as is ``loss``."""
    loss: Tensor | None
    draw: Draw
    size: int
    """The row's maskable tokens, P."""
    scale: float
    """The factor of the row's loss in the step's."""

    @property
    def factor(self) -> Tensor:
        """The factor of each token's cross-entropy in the row's loss, (K, L); 0 where it is not masked."""
        active = self.draw.active[0]
        share = self.draw.coefficient[0] / active.sum().clamp(min=1)
        return torch.where(self.draw.mask[0] & active[:, None], share, 0.0)

    @property
    def weight(self) -> Tensor:
        """How much each masked token counts in its view, (K, L): 1 where the row is masked whole, as at t = 1."""
        return self.factor * self.draw.active[0].sum() * self.size

    @property
    def masked(self) -> Tensor:
        """The tokens that have a loss in a view, bool, (K, L)."""
        return self.draw.mask[0] & self.draw.active[0][:, None]

    @property
    def nll(self) -> Tensor:
        """The cross-entropy of each token with a factor, in nats, (K, L)."""
        return self.tokens.detach() / self.factor.to(self.tokens).where(self.factor != 0, 1.0)


def rows_of(trainer: MDMTrainer, by_place: dict[int, TokenRow]) -> list[OneRow]:
    """The rows of the trainer's current step in the order of their positions, without repeats."""
    found = []
    for batch in trainer.batches:
        device = batch["input_ids"].device
        for i, place in enumerate(batch["place"].tolist()):
            if not batch["counted"][i]:
                continue
            row = by_place[place]
            alone = {name: value.to(device) for name, value in trainer.data_collator.collate([(row, place)]).items()}
            more = {name: _one(value, i, len(batch["place"])) for name, value in batch.items() if name not in alone}
            found.append(OneRow(row, int(batch["position"][i]), alone | more))
    return sorted(found, key=lambda one: one.position)


def _one(value, i: int, rows: int):
    """Of a value for each row that of one of them; of any other, itself."""
    return value[i : i + 1] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value


def rows_beside(trainer: MDMTrainer, by_place: dict[int, TokenRow], one: OneRow) -> list[OneRow]:
    """Some rows of the steps that were made again beside a step of a single row, each as if it were that row."""
    own = int(one.inputs["place"])
    found = []
    for place, row in [(place, row) for place, row in by_place.items() if place != own][-BESIDE:]:
        values = trainer.data_collator.collate([(row, place)])
        alone = {name: value.to(one.inputs["input_ids"].device) for name, value in values.items()}
        found.append(OneRow(row, one.position, one.inputs | alone))
    return found


def redrawn(trainer: MDMTrainer, one: OneRow, method: Method) -> Forwarded:
    """The row's draw of the step under a method that draws t from the same density; no loss is taken of the model."""
    with _drawing(trainer, method, trainer.sampler):
        inputs, _, draw = trainer.drawn(Key(trainer.noise_seed, trainer.state.global_step), one.inputs)
    return Forwarded(None, None, draw, int(inputs["maskable"].sum()), 1.0)


def forward(trainer: MDMTrainer, one: OneRow) -> Forwarded:
    """The row under its draw of the step."""
    return _forward(trainer, Key(trainer.noise_seed, trainer.state.global_step), one.inputs)


def usual(trainer: MDMTrainer, one: OneRow) -> Iterator[Forwarded]:
    """Yields the row under draws that any row might get: exact counts of masked tokens where the objective has them,
    spread evenly over t.

    They are the same for every row. An autoregressive model has no others than those of the step.
    """
    if trainer.method.autoregressive:
        yield forward(trainer, one)
        return
    exact = f"+{EXACT}" if exact_or_standard(trainer.objective) == EXACT else ""
    method = Method.parse(f"lowdisc{exact}", objective=trainer.objective)
    blocks = int(trainer.blocks.counts(one.inputs["maskable"])) if "first_unit" in one.inputs else 0
    for draw in range(REDRAWS):
        place = {"position": torch.full_like(one.inputs["position"], draw), "step_rows": REDRAWS}
        if blocks:
            place |= {"first_unit": torch.full_like(one.inputs["first_unit"], draw * blocks)}
            place |= {"step_units": REDRAWS * blocks}
        with _drawing(trainer, method, method.sampler()):
            yield _forward(trainer, Key(trainer.noise_seed, _REDRAWN), one.inputs | place)


@contextmanager
def _drawing(trainer: MDMTrainer, method: Method, sampler: TSampler) -> Iterator[None]:
    """While this context is open, the trainer draws by another method."""
    own = trainer.method, trainer.sampler
    trainer.method, trainer.sampler = method, sampler
    try:
        yield
    finally:
        trainer.method, trainer.sampler = own


def _forward(trainer: MDMTrainer, key: Key, inputs: dict) -> Forwarded:
    inputs, _, draw = trainer.drawn(key, inputs)
    with trainer.compute_loss_context_manager():
        tokens, beside, _, _ = trainer._part(trainer.model_wrapped, inputs, draw, range(draw.active.shape[1]))
        loss = reduce_loss(tokens.sum(dim=(1, 2)) + beside, inputs["row_weight"], inputs["step_weight"])
    scale = float(inputs["row_weight"][0]) / float(inputs["step_weight"])
    return Forwarded(tokens[0], loss, draw, int(inputs["maskable"].sum()), scale)


@dataclass(frozen=True)
class OfBlock:
    """One block of a row in blocks: its t, its masked and maskable tokens, and what it adds to the row's loss."""

    number: int
    t: float
    masked: int
    maskable: int
    weight: float
    loss: Tensor
    places: Tensor
    """Whether each place of the row belongs to it, bool, (L,)."""


def blocks_of(forwarded: Forwarded) -> list[OfBlock]:
    """The blocks of a row, none for a model that is not in blocks."""
    draw = forwarded.draw
    if not isinstance(draw, BlockDraw):
        return []
    units, losses = draw.units, draw.units.per_unit(forwarded.tokens.sum(0)[None])
    found = []
    for unit in range(len(draw.t)):
        maskable = units.rows.maskable[unit]
        places = torch.zeros_like(draw.mask[0, 0])
        places[units.place[unit][maskable]] = True
        weight, masked = forwarded.weight[:, places].max(), int(forwarded.masked[:, places].sum())
        number, size = len(found) + 1, int(maskable.sum())
        found.append(OfBlock(number, float(draw.t[unit]), masked, size, float(weight), losses[unit], places))
    return found
