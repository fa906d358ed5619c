"""A meter that draws whole training steps and takes their gradients, raw, clipped and as Adam's update.

Legend: S steps, n rows of a step, k places of a sketch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabledllm.data.rows import collate
from stabledllm.forward.meter import Meter
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.gradient.sketch import Sketch, block_products
from stabledllm.gradient.steps import TRANSFORMS, StepGradients
from stabledllm.loss import reduce_loss, row_losses
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.runtime.finite import require_finite

_STEP = 0x57E9_0000
_STANDARD = 0x57E9_8000
"""First step number of the draws for Adam's second moments, which are never among the measured ones."""
_BYTES = 2**31
"""Step gradients are held exactly up to this size in all, and projected beyond it."""
ADAM_EPS, ADAM_BETA2 = 1e-8, 0.999
"""The defaults of torch and of the Trainer."""


class StepMeter(Meter):
    """A meter of whole training steps: it draws them and takes their gradients by ordinary backward passes.

    Args:
        parameters: patterns of parameter names; None takes all that are trainable.
        clip: norm to which gradients are clipped before the optimizer sees them (the Trainer's default 1.0); the norm
            is that of all trainable parameters, as in training, whichever are measured.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter = example_meter(StepMeter)
    >>> meter.measure(Method(), Method().sampler(), rows=2, steps=4, seed=0).gram["raw"].shape
    torch.Size([4, 4])
    """

    takes_whole_steps = True

    def __init__(self, *args, parameters: Sequence[str] | None = None, clip: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.parameters = chosen_parameters(self.model, parameters)
        self.clip = clip
        self.sizes = {name: p.numel() for name, p in self.parameters.items()}
        self.second_moment: dict[str, Tensor] | None = None

    def precondition(self, *, rows: int, steps: int, seed: int) -> None:
        """Set Adam's second moments to the mean square of Standard's clipped step gradients, on draws of their own."""
        method = Method(objective=self.objective)
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        for s in range(steps):
            norm = self._step(method, method.sampler(), rows, seed, _STANDARD + s)
            for name, p in self.parameters.items():
                total[name] += (p.grad * self._factor(norm)) ** 2 / steps
        self.second_moment = total
        self._clear()

    def measure(
        self, method: Method, sampler: TSampler, *, rows: int, steps: int, seed: int,
        transforms: Sequence[str] = TRANSFORMS,
    ) -> StepGradients:  # fmt: skip
        """Draw ``steps`` steps of ``rows`` iid data rows each, as training would, and take their gradients.

        ``update`` needs :meth:`precondition`.
        """
        transforms = [t for t in transforms if t != "update" or self.second_moment is not None]
        wide = sum(self.sizes.values()) * 4 * steps * len(transforms) > _BYTES
        sketch = Sketch(self.sizes) if wide else None
        vectors: dict[str, list[Tensor]] = {t: [] for t in transforms}
        clipped, before = 0, self.forwards
        for s in range(steps):
            norm = self._step(method, sampler, rows, seed, _STEP + s)
            clipped += norm > self.clip
            for t in transforms:
                vectors[t].append(self._vector(t, norm, sketch))
        self._clear()
        stacked = {t: torch.stack(v) for t, v in vectors.items()}
        blocks = {t: block_products(m, m) for t, m in stacked.items()} if sketch else {}
        gram = {t: blocks[t].mean(0) if sketch else (m @ m.T).double() for t, m in stacked.items()}
        return StepGradients(gram, rows, (self.forwards - before) / (rows * steps), clipped / steps, blocks)

    def _factor(self, norm: float) -> float:
        return min(1.0, self.clip / max(norm, 1e-12))

    def _vector(self, transform: str, norm: float, sketch: Sketch | None) -> Tensor:
        parts = []
        out = torch.zeros(1, sketch.places) if sketch else None
        for name, p in self.parameters.items():
            g = p.grad if transform == "raw" else p.grad * self._factor(norm)
            if transform == "update":
                second = ADAM_BETA2 * self.second_moment[name] + (1 - ADAM_BETA2) * g**2
                g = g / (second.sqrt() + ADAM_EPS)
            if sketch:
                sketch.add(out, name, g.reshape(1, -1).float().cpu())
            else:
                parts.append(g.flatten().float().cpu())
        return out[0] if sketch else torch.cat(parts)

    def rates(self, method: Method, sampler: TSampler, key: Key, drawn: Tensor) -> Tensor:
        """The mask ratios of a step's rows, float64, shape (n,).

        Args:
            drawn: index of each row in the data, shape (n,).
        """
        return sampler.icdf(method.source.uniforms(key, len(drawn), torch.device("cpu")))

    def _step(self, method: Method, sampler: TSampler, rows: int, seed: int, step: int) -> float:
        """Leave one step's gradient in ``.grad`` and return its norm over all trainable parameters."""
        self._clear()
        key = Key(seed, step)
        index = torch.arange(rows)
        drawn = (key.row_uniforms(Stream.RESAMPLE, index) * len(self.rows)).long()
        t = self.rates(method, sampler, key, drawn)
        whole = collate([self.rows[i] for i in drawn.tolist()], self.pad_id, syrm=method.syrm)
        weight = self.objective.row_weight(whole["maskable"])
        with self.mode(self.model):
            for chunk in self.chunks(drawn, method.views.count):
                batch, draw = self.draw(drawn, t, method, key, sampler, chunk)
                losses = row_losses(self.cross_entropies(batch, draw), draw.mask, draw.coefficient, draw.active)
                self.require_finite(losses, drawn[chunk])
                if losses.requires_grad:
                    reduce_loss(losses, weight[chunk].to(losses.device), float(weight.sum())).backward()
        for p in self.parameters.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        norm = torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None]).norm()
        require_finite(norm, f"the gradient norm of {type(self.model).__name__}")
        return float(norm)

    def _clear(self) -> None:
        for p in self.model.parameters():
            p.grad = None
