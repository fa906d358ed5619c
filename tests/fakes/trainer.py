"""A small float64 run, split over accumulation steps as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainingArguments

from stabledllm.build import build_adaptive
from stabledllm.config.settings import AdaptiveSettings
from stabledllm.data.rows import TokenRow
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.training.blocks import InBlocks
from stabledllm.training.statistics import StepStatistics
from stabledllm.training.trainer import MDMTrainer
from tests.fakes import tiny

DENSITY = Tabulated(torch.linspace(0.5, 2.0, 64, dtype=torch.float64), name="ppots")
ROWS = 22
STEPS = 10
"""More than three epochs, of which the last step is short, and as many refits of an adaptive density."""
_LAYOUT = ("packing", "group_by_length", "views_per_forward", "caption_dropout", "expert_load", "one_t")


@dataclass
class Recorded:
    """What a run drew and reported, by (step, position)."""

    draws: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = field(default_factory=dict)
    parts: dict[int, float] = field(default_factory=dict)
    """This rank's part of each step's mean loss, in float64 (the Trainer's own log is float32)."""

    @property
    def losses(self) -> list[float]:
        return list(self.parts.values())


class RecordingTrainer(MDMTrainer):
    """Keeps every draw; a key drawn twice must be drawn alike."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        record, step, add = self.recorded, self.state.global_step, self.statistics.add

        def keep(draw, rows, counted, *rest):
            for i, position in enumerate(rows.position.tolist()):
                if counted[i]:
                    masked = tuple(map(tuple, draw.mask[i].nonzero().tolist()))
                    record.draws[step, position] = (float(draw.t[i]), masked)
            return add(draw, rows, counted, *rest)

        self.statistics.add = keep
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        del self.statistics.add
        record.parts[step] = record.parts.get(step, 0.0) + loss.item() / self.args.world_size
        return loss


class RecordingBlockTrainer(InBlocks, RecordingTrainer):
    """The same in blocks."""


def make_trainer(
    out: Path,
    method: str = "standard",
    *,
    micro: int = 8,
    accumulation: int = 1,
    steps: int = STEPS,
    sampler=None,
    objective: Objective | None = None,
    train: Sequence[TokenRow] | None = None,
    evaluated: list[TokenRow] | None = None,
    noise_seed: int = 11,
    order_seed: int | None = None,
    block_size: int | None = None,
    model=None,
    ids: tuple[int, int] = (256, 257),
    **arguments,
) -> RecordingTrainer:
    """A trainer of a small random float64 model on 22 rows, so that the last step of an epoch of 8 is short."""
    if model is None:
        model = tiny.model(32)
    chosen = Method.parse(method, objective=objective)
    follow = build_adaptive(AdaptiveSettings(every=3, half_life=5, rates=4), chosen)
    data = train or tiny.rows(ROWS)
    layout = {k: arguments.pop(k) for k in _LAYOUT if k in arguments}
    kind = partial(RecordingBlockTrainer, block_size=block_size) if block_size else RecordingTrainer
    trainer = kind(
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            max_steps=steps,
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            save_strategy=arguments.pop("save_strategy", "no"),
            disable_tqdm=True,
            use_cpu=True,
            restore_callback_states_from_checkpoint=True,
            dataloader_pin_memory=False,
            seed=3,
            **arguments,
        ),
        method=chosen,
        sampler=sampler or chosen.sampler(None if chosen.adaptive else DENSITY),
        adaptive=follow if chosen.adaptive else None,
        train_rows=data,
        eval_rows=data[:6] if evaluated is None else evaluated,
        mask_id=ids[0],
        pad_id=ids[1],
        noise_seed=noise_seed,
        order_seed=order_seed,
        **layout,
        statistics=StepStatistics(4, 0.2, chosen.ema),
        identity={"method": chosen.name},
    )
    trainer.recorded = Recorded()
    trainer.remove_callback(PrinterCallback)
    return trainer
