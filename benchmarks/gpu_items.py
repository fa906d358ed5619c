"""What ``gpu.py`` measures, each an item that gives its results one by one; on a GPU and in rehearsal alike.

An item is a generator of (name, JSON value): what it gave before it ran out of memory or time is kept.

Legend: B rows, L positions, D width, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from gpu_device import Device, Memory, random_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from stabledllm.config.settings import LoRASettings, TrainSettings
from stabledllm.decoding import DecodingOptions
from stabledllm.forward.nll import forward_nll
from stabledllm.loss import nll_weights, reduce_loss, row_losses
from stabledllm.models.families.llada import LLaDAConfig, LLaDAModelLM
from stabledllm.models.loading import LoadedModel
from stabledllm.models.shapes import PUBLISHED, Shape
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key
from stabledllm.planning.layout import Layout
from stabledllm.planning.memory import estimate

Results = Iterator[tuple[str, object]]


@dataclass(frozen=True)
class Scale:
    """The sizes of a run: those of a GPU, or of a rehearsal."""

    shape: Shape
    tokens: int
    """Tokens of a training step, in rows of each of ``lengths``."""
    lengths: tuple[int, ...]
    prompts: int
    prompt: int
    decoding: DecodingOptions
    repeats: int
    rank: int

    @property
    def mask_id(self) -> int:
        """LLaDA's own place for it, 128 rows before the end of the embedding."""
        return self.shape.vocabulary - self.shape.vocabulary // 988


FULL = Scale(
    PUBLISHED["GSAI-ML/LLaDA-8B-Base"], tokens=8192, lengths=(1024, 4096), prompts=8, prompt=512,
    decoding=DecodingOptions(length=128, steps=64, block=32), repeats=3, rank=64,
)  # fmt: skip
REHEARSAL = Scale(
    Shape("llada", layers=2, width=64, heads=4, kv_heads=4, hidden=96, vocabulary=1000), tokens=128, lengths=(32, 64),
    prompts=2, prompt=8, decoding=DecodingOptions(length=8, steps=4, block=4), repeats=2, rank=4,
)  # fmt: skip


def make_model(device: Device, shape: Shape) -> LLaDAModelLM:
    """A LLaDA of that shape in bfloat16 with random weights, made where it is needed."""
    config = LLaDAConfig(
        vocab_size=shape.vocabulary, d_model=shape.width, n_layers=shape.layers, n_heads=shape.heads,
        n_kv_heads=shape.kv_heads, mlp_hidden_size=shape.hidden,
    )  # fmt: skip
    with torch.device("meta"):
        model = LLaDAModelLM._from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)
    return random_weights(model, device.kind, config.init_std)


def parameters(device: Device, scale: Scale, model: LLaDAModelLM) -> Results:
    """What was made."""
    yield "parameters", sum(p.numel() for p in model.parameters())
    yield "expected", scale.shape.parameters


def noise(device: Device, scale: Scale, model: LLaDAModelLM) -> Results:
    """Seconds of a step's draw on the device; and whether its bits are the CPU's, as every draw's must be."""
    for name in ("standard", "lowdisc+fixedcount", "strats+mirror", "complement"):
        method = Method.parse(name)
        there = rows_of(scale.tokens // scale.lengths[0], scale.lengths[0], device.kind)
        here = replace(there, **{k: v.cpu() for k, v in vars(there).items() if isinstance(v, Tensor)})
        expected, drawn = (method.draw(Key(0, 7), rows, Uniform()) for rows in (here, there))
        seconds = timed(device, lambda m=method, r=there: m.draw(Key(0, 7), r, Uniform()), scale.repeats)
        yield (
            name,
            {
                "seconds": seconds,
                "same masks as on the CPU": bool(torch.equal(expected.mask, drawn.mask.cpu())),
                "largest difference of t": float((expected.t - drawn.t.cpu()).abs().max()),
            },
        )


def rows_of(count: int, length: int, device: torch.device) -> Rows:
    """Rows of which the second half is the response."""
    index = torch.arange(length, device=device)
    maskable = (index >= length // 2)[None].expand(count, -1)
    return Rows(torch.arange(count, device=device), count, maskable, index)


def batch_of(scale: Scale, lengths: list[int], width: int, device: torch.device) -> dict[str, Tensor]:
    """Random rows of these lengths, padded to ``width``; the second half of each is the response."""
    generator = torch.Generator(device=device).manual_seed(1)
    size = torch.tensor(lengths, device=device)[:, None]
    place = torch.arange(width, device=device)[None]
    ids = torch.randint(0, scale.mask_id, (len(lengths), width), generator=generator, device=device)
    real = place < size
    return {"input_ids": ids * real, "attention_mask": real, "maskable": real & (place >= size // 2)}


def drawn(batch: dict[str, Tensor], step: int, method: str = "lowdisc") -> Draw:
    """A step's noise; with ``lowdisc`` about half of the response is masked in every step."""
    n, width = batch["input_ids"].shape
    device = batch["input_ids"].device
    rows = Rows(torch.arange(n, device=device), n, batch["maskable"], torch.arange(width, device=device))
    return Method.parse(method).draw(Key(0, step), rows, Uniform())


def lean_loss(model, scale: Scale, batch: dict[str, Tensor], draw: Draw, *, packing: bool = False) -> Tensor:
    """The loss as training takes it: cross-entropies at masked positions, in chunks."""
    n = len(batch["input_ids"])
    weight = torch.ones(n, dtype=torch.float64, device=draw.t.device)
    hint = nll_weights(draw.mask, draw.coefficient, draw.active, weight)
    nll, _ = forward_nll(model, batch, draw, scale.mask_id, weights=hint, packing=packing)
    return reduce_loss(row_losses(nll, draw.mask, draw.coefficient, draw.active), weight, n)


def plain_loss(model, scale: Scale, batch: dict[str, Tensor], draw: Draw) -> Tensor:
    """The same loss as the published loops take it: logits at all positions in float32, times a 0/1 mask."""
    noisy, mask, source = draw.noisy(batch["input_ids"], scale.mask_id)
    logits = model(noisy, batch["attention_mask"]).logits.float()
    each = F.cross_entropy(logits.flatten(0, 1), batch["input_ids"][source].flatten(), reduction="none").view_as(noisy)
    return (each * draw.coefficient[:, 0] * mask).sum() / len(noisy)


@dataclass(frozen=True)
class Tuning:
    """How a step trains: all weights or adapters, with or without recomputed activations."""

    settings: TrainSettings
    planned: float
    """Bytes that ``stabledllm plan`` says the run allocates at its peak, without all logits."""
    all_logits: float
    """Bytes more with all logits at once."""

    @property
    def words(self) -> dict:
        return {"tuning": "LoRA" if self.settings.lora else "all weights", "checkpointing": self.checkpointing}

    @property
    def checkpointing(self) -> bool:
        return bool(self.settings.trainer.get("gradient_checkpointing"))


def tuning_of(device: Device, scale: Scale, rows: int, length: int) -> Tuning:
    """The first that fits the device with all logits too: all weights, recomputed activations, then adapters."""
    ways = [(lora, again) for lora in (None, LoRASettings(rank=scale.rank)) for again in (False, True)]
    for lora, again in ways:
        settings = TrainSettings(
            batch=rows, micro_batch=rows, dtype="bfloat16", lora=lora, trainer={"gradient_checkpointing": again}
        )
        memory = estimate(settings, scale.shape, Layout(longest=length))
        fits = device.total_bytes is None or memory.needed + memory.all_logits <= device.total_bytes
        if fits or (lora, again) == ways[-1]:
            return Tuning(settings, memory.total, memory.all_logits)
    raise AssertionError("unreachable")


def training(device: Device, scale: Scale, model: LLaDAModelLM, *, length: int, compiled: bool = False) -> Results:
    """Steps of forward, backward and AdamW under the lean head and, of the same draws, under all logits."""
    rows = scale.tokens // length
    tuning = tuning_of(device, scale, rows, length)
    batch = batch_of(scale, [length] * rows, length, device.kind)
    yield from {"rows": rows, "length": length, **tuning.words}.items()
    with trained(model, scale, tuning, compiled=device.compiler if compiled else None) as prepared:
        losses = {"lean head": lean_loss} if compiled else {"lean head": lean_loss, "all logits": plain_loss}
        for name, loss in losses.items():
            planned = tuning.planned + (tuning.all_logits if loss is plain_loss else 0)
            flops = needed_flops(scale.shape, batch, drawn(batch, 0), frozen=tuning.settings.lora is not None)
            made = optimised(device, prepared, scale, batch, loss)
            device.free()
            yield name, made | rates(device, made["seconds"], batch, flops) | {"planned_bytes": planned}


def packing(device: Device, scale: Scale, model: LLaDAModelLM) -> Results:
    """Steps on rows of unequal length, padded and laid end to end; useful are the rows' own tokens."""
    width = scale.lengths[0]
    lengths = [max(4, width * k // 16) for k in (16, 3, 5, 9, 4, 7, 6, 12)]
    tuning = tuning_of(device, scale, len(lengths), width)
    batch = batch_of(scale, lengths, width, device.kind)
    yield from {"lengths": lengths, **tuning.words}.items()
    with trained(model, scale, tuning) as prepared:
        for name, packed in (("padded", False), ("packed", True)):

            def loss(model, scale, batch, draw, packed=packed):
                return lean_loss(model, scale, batch, draw, packing=packed)

            made = optimised(device, prepared, scale, batch, loss)
            device.free()
            yield name, made | {"tokens_per_second": sum(lengths) / made["seconds"]}


@contextmanager
def trained(model: LLaDAModelLM, scale: Scale, tuning: Tuning, compiled: str | None = None) -> Iterator[nn.Module]:
    """A context in which a model trains as ``tuning`` says; afterwards it is as it was, but for its weights' values."""
    model.train()
    if tuning.checkpointing:
        getattr(model, f"{_checkpointing()}_enable")({"use_reentrant": False})
    if compiled:
        for layer in model.layers():  # one layer's code serves all of them
            layer.compile(backend=compiled)
    adapted = None
    if tuning.settings.lora:
        from stabledllm.models.adapters import LoRAOptions, add_lora  # here, as all else goes without peft

        adapted = add_lora(LoadedModel(model, None, "the benchmark's model"), LoRAOptions(rank=scale.rank)).model
    try:
        yield adapted or model
    finally:
        if adapted is not None:
            adapted.unload()
            model.requires_grad_(True)
        if tuning.checkpointing:
            getattr(model, f"{_checkpointing()}_disable")()
        if compiled:
            for layer in model.layers():
                layer._compiled_call_impl = None
        model.zero_grad(set_to_none=True)
        model.eval()


def _checkpointing() -> str:
    """What this version of transformers calls recomputed activations."""
    return next(
        n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(PreTrainedModel, f"{n}_enable")
    )


def optimised(device: Device, model, scale: Scale, batch: dict[str, Tensor], loss_of: Callable) -> dict:
    """Median seconds of a step, its memory, and the loss of step 0."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer, count, losses = device.optimizer(weights), iter(range(10**6)), []

    def step() -> None:
        loss = loss_of(model, scale, batch, drawn(batch, next(count)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    def held() -> Iterator[Tensor]:
        yield from model.parameters()
        yield from (v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))

    step()  # makes the optimizer's state, and compiles what is compiled
    with device.watching(held) as memory:
        step()
    seconds = timed(device, step, scale.repeats, warm=True)
    return {"seconds": seconds, "first_loss": float(losses[0]), **bytes_of(memory)}


def bytes_of(memory: Memory) -> dict:
    """Bytes before a step, and at its peak."""
    return {"resident_bytes": memory.resident, "peak_bytes": memory.peak}


def needed_flops(shape: Shape, batch: dict[str, Tensor], draw: Draw, *, frozen: bool) -> float:
    """Operations that a step needs: the layers at all real positions, the output layer at the masked ones.

    Forward 2 a weight and token, backward 4, or 2 where the weights are frozen; attention 4 L D a token forward, twice
    that backward. Recomputed activations and logits that carry no loss are not needed, and count for nothing.
    """
    real = batch["attention_mask"].sum(1).double()
    passes = 2 if frozen else 3
    layers = 2 * shape.layers * shape.linear_parameters * float(real.sum())
    attention = 4 * shape.layers * shape.query_width * float((real**2).sum())
    head = 2 * shape.vocabulary * shape.width * int(draw.mask.sum())
    return passes * (layers + head) + 3 * attention


def rates(device: Device, seconds: float, batch: dict[str, Tensor], flops: float) -> dict:
    """Tokens per second, and the share of the device's speed that needed operations use; None where it is unknown."""
    peak = device.peak_flops
    return {
        "tokens_per_second": int(batch["attention_mask"].sum()) / seconds,
        "needed_flops": flops,
        "utilisation": flops / seconds / peak if peak else None,
    }


def timed(device: Device, run: Callable[[], object], repeats: int, *, warm: bool = False) -> float:
    """Median seconds of a run, which is made once before unless it was."""
    if not warm:
        run()
    seconds = []
    for _ in range(repeats):
        device.synchronize()
        began = time.perf_counter()
        run()
        device.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
