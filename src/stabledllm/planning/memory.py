"""Estimates the memory of a training run per device, before anything is loaded.

The bytes of weights, gradients and optimizer follow from the parameter count and the sharding, those of activations
from :mod:`stabledllm.planning.activations`. AdamW keeps two moments in the precision of its master weights.

Each sharding keeps, with n devices and w bytes per loaded weight:

- ``ddp``: everything on every device, at w. With two or more devices, a second copy of the gradients for the reduction.
  With bf16 autocast over float32 weights, a bfloat16 copy of them lives through the step.
- ``fsdp2``: 1/n of everything, in float32 under mixed precision, as accelerate loads it; besides, two blocks and the
  root (embedding and output layer) whole.
- ``zero2``: whole weights in bfloat16; 1/n of the gradients, float32 master weights and moments.
- ``zero2_offload``: the same, with everything but the weights in the host's memory.
- ``zero3``: 1/n of the bfloat16 weights as well. ``zero3_offload``: all of it in the host's memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from stabledllm.build import build_method
from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.bins import LONGEST
from stabledllm.models.shape import Shape
from stabledllm.planning.activations import Forward, full_logits_bytes, head_bytes, kept_bytes, working_bytes
from stabledllm.planning.layout import GIB, Layout

QUANTISED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Bytes per quantised weight; for NF4 with its doubly quantised scales, one for every 64 weights."""
_BUCKET = 5e8
"""Numbers in one of DeepSpeed's buckets; it has one for reducing and one for gathering."""
_LIVE = 1e9
"""Most weights that ZeRO-3 keeps gathered."""
_CONTEXT = GIB
"""Bytes of the device's context and libraries."""
_FRAGMENTED = 0.05
"""Share of the memory that the allocator cannot use."""


@dataclass(frozen=True)
class Memory:
    """The estimated bytes per device; ``host`` is main memory, for all devices together."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    """Reduction buckets, and buffers that sharded weights are gathered into."""
    activations: float
    loss_head: float
    """What the loss head needs beyond the peak of a block's backward pass."""
    all_logits: float
    """What the loss head would need in addition if it made all logits at once; not in the total."""
    host: float = 0.0
    averages: float = 0.0
    """Averages of the weights, where they are held on the device."""

    @property
    def parts(self) -> dict[str, float]:
        """Bytes of each part by its name for readers; their sum is :attr:`needed`."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "buffers": self.gathered,
            "activations": self.activations,
            "loss head": self.loss_head,
            **({"averages": self.averages} if self.averages else {}),
            "reserve": self.reserve,
        }

    @property
    def total(self) -> float:
        """Bytes that the run allocates at its peak."""
        parts = ("weights", "gradients", "optimizer", "gathered", "activations", "loss_head", "averages")
        return sum(getattr(self, name) for name in parts)

    @property
    def reserve(self) -> float:
        """Bytes of the device that the run cannot use: the context and fragmented memory."""
        return _CONTEXT + _FRAGMENTED * self.total

    @property
    def needed(self) -> float:
        """The smallest memory of a device that the run surely fits."""
        return self.total + self.reserve


def estimate(settings: TrainSettings, shape: Shape, layout: Layout) -> Memory:
    """The memory that a run needs.

    Raises:
        UserError: the batch does not divide over the devices.
    """
    run = _forward(settings, shape, layout)
    activations, working, head = kept_bytes(shape, run), working_bytes(shape, run), head_bytes(shape, run)
    states = _states(settings, shape, layout)
    averages, held = _averages(settings, shape, layout)
    return dataclasses.replace(
        states,
        averages=averages,
        host=states.host + held,
        weights=states.weights + _reference(settings, shape, layout),
        activations=activations + working,
        loss_head=max(0, head - working),
        all_logits=full_logits_bytes(shape, run) - head,
    )


def views_of(settings: TrainSettings) -> int:
    """The number of forwards of a training row, one for each of its views."""
    return build_method(settings.method, settings).views.count


def views_at_once(settings: TrainSettings) -> int:
    """The number of views of a row in memory at a time; for ``auto`` 1, the fewest it may choose."""
    given = settings.views_per_forward
    return min(views_of(settings), 1 if given == "auto" else given or views_of(settings))


def copies_of(settings: TrainSettings, shape: Shape) -> int:
    """Copies of a row that go through the model side by side: in blocks a noisy and a clean one."""
    return 2 if settings.block_size or shape.in_blocks else 1


def micro_batch(settings: TrainSettings, devices: int) -> int:
    """Rows per device and forward.

    Raises:
        UserError: the batch does not divide.
    """
    rows = settings.micro_batch or settings.batch // devices
    if not rows or settings.batch % (rows * devices):
        raise UserError(
            f"key 'batch': expected a multiple of micro_batch x devices = {rows} x {devices}, found {settings.batch}."
        )
    return rows


def checkpointing(settings: TrainSettings) -> bool:
    """Whether activations are recomputed."""
    names = ("gradient_checkpointing", "activation_checkpointing")
    return any(bool(settings.trainer.get(name)) for name in names)


def _forward(settings: TrainSettings, shape: Shape, layout: Layout) -> Forward:
    half = settings.dtype == "bfloat16" or (_sharded(layout) and _mixed(settings))
    compute = "bfloat16" if half else "autocast" if _mixed(settings) else "float32"
    lora = settings.lora
    return Forward(
        rows=rows_at_once(settings, shape, layout),
        length=length_of(settings, layout),
        copies=copies_of(settings, shape),
        # Packed rows are no more tokens than padded ones, in sequences that may be longer.
        mask=0.0 if settings.attention == "flex_attention" else LONGEST if settings.packing else 1.0,
        compute=compute,
        checkpointing=checkpointing(settings),
        adapters=shape.targets(lora.target_modules) if lora else None,
        rank=lora.rank if lora else 0,
        dropout=bool(lora and lora.dropout),
        cast=2 if _mixed(settings) else 4,
    )


def length_of(settings: TrainSettings, layout: Layout) -> int:
    """Tokens of the longest row; of policy gradients those of a prompt and of a response to it."""
    drawn = settings.grpo.rollout.length if settings.objective.kind == "grpo" else 0
    return (layout.longest or settings.data.max_len) + drawn


def rows_at_once(settings: TrainSettings, shape: Shape, layout: Layout) -> int:
    """Forward rows of one pass: of responses as many as its tokens hold, of any other run those of a micro-batch."""
    rows, kind = micro_batch(settings, layout.devices), settings.objective.kind
    if kind not in ("dpo", "grpo"):
        return rows * views_at_once(settings)
    given = settings.dpo if kind == "dpo" else settings.grpo
    responses = 2 if kind == "dpo" else settings.grpo.group
    fitting = given.tokens_per_forward // (length_of(settings, layout) * copies_of(settings, shape))
    return min(responses * given.budget * rows, max(views_of(settings), fitting))


def _reference(settings: TrainSettings, shape: Shape, layout: Layout) -> float:
    """Bytes on a device of the frozen model that responses are held against, of the policy's shape."""
    if settings.objective.kind not in ("dpo", "grpo"):
        return 0.0
    given = settings.dpo if settings.objective.kind == "dpo" else settings.grpo
    if given.held_against(adapters=settings.lora is not None) in (None, "adapter", "kept"):
        return 0.0
    share = layout.devices if layout.sharding == "fsdp2" else 1
    return float(shape.parameters) * (2 if settings.dtype == "bfloat16" else 4) / share


def _averages(settings: TrainSettings, shape: Shape, layout: Layout) -> tuple[float, float]:
    """Bytes of the averages of the weights, in float32: on a device, and in main memory for all devices together.

    The weights that make room for an average while it is evaluated take no more than the gradients did before.
    """
    lora = settings.lora
    trained = shape.lora_parameters(lora.rank, lora.target_modules) if lora else shape.parameters
    of_all = 4.0 * settings.average.count * trained
    share = of_all / layout.devices if layout.sharding == "fsdp2" else of_all
    return (0.0, share * layout.devices) if settings.average.on_cpu else (share, 0.0)


def _mixed(settings: TrainSettings) -> bool:
    return bool(settings.trainer.get("bf16"))


def _sharded(layout: Layout) -> bool:
    return layout.sharding != "ddp"


def _states(settings: TrainSettings, shape: Shape, layout: Layout) -> Memory:
    """The memory of weights, gradients and optimizer, by the list at the head of this module."""
    n, kind = layout.devices, layout.sharding
    w = 2 if settings.dtype == "bfloat16" else 4
    trained, frozen = float(shape.parameters), 0.0
    frozen_bytes = 0.0
    if settings.lora:
        frozen, trained = trained, float(shape.lora_parameters(settings.lora.rank, settings.lora.target_modules))
        frozen_bytes = w * frozen
        if settings.quantised:
            linear = shape.linear_in_all
            frozen_bytes = QUANTISED[settings.quantised] * linear + w * (frozen - linear)
        w = 4  # peft keeps adapters in float32
    half = _mixed(settings) or settings.dtype == "bfloat16"
    deepspeed = 2 if half else 4
    block = shape.layer_parameters * (2 if half else 4)
    root = (shape.embedding_parameters + shape.width) * (2 if half else 4)
    buckets = 2 * min(_BUCKET, trained) * deepspeed
    live = min(_LIVE, trained + frozen) * deepspeed
    master = 12 if half else 8  # float32 master weights and two moments; weights in float32 are their own master
    blank = Memory(0, 0, 0, 0, 0, 0, 0)
    if kind == "ddp":
        copy = 2 * trained if _mixed(settings) and w == 4 else 0
        return dataclasses.replace(
            blank,
            weights=frozen_bytes + w * trained + copy,
            gradients=w * trained,
            optimizer=2 * w * trained,
            gathered=w * trained if n > 1 else 0,
        )
    if kind == "fsdp2":
        own = 4 if _mixed(settings) else w
        gradients = 0 if settings.lora else block + root  # of the gathered weights, before they are reduced
        return dataclasses.replace(
            blank,
            weights=(frozen_bytes + own * trained) / n,
            gradients=own * trained / n,
            optimizer=2 * own * trained / n,
            gathered=2 * block + root + gradients,
        )
    whole = kind.startswith("zero2")
    bottom = frozen_bytes + deepspeed * trained
    # Gradients are held in their own precision until the step, then in float32 for the optimizer.
    gradients, optimizer = (deepspeed + 4) * trained, master * trained
    weights = bottom if whole else bottom / n
    gathered = buckets if whole else buckets + live
    if kind.endswith("offload"):
        kept = weights if whole else 0
        host = optimizer + 4 * trained + (0 if whole else bottom)
        return dataclasses.replace(blank, weights=kept, gathered=gathered, host=host)
    return dataclasses.replace(
        blank, weights=weights, gradients=gradients / n, optimizer=optimizer / n, gathered=gathered
    )
