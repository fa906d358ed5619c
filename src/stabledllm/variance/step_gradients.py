"""The noise of training steps' gradients as the optimizer sees it: raw, clipped, and as Adam's update, by drawing them.

Every figure comes from inner products of whole step gradients, so that a squared mean is a mean over pairs of
different steps. Legend: S steps, n rows of a step, D coordinates (k of a sketch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.estimate import Estimate
from stabledllm.gradients.parameters import chosen_parameters
from stabledllm.gradients.sketch import Sketch
from stabledllm.jackknife import LEAST_ROWS, spread
from stabledllm.measure import Meter
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.noise.t_samplers import TSampler
from stabledllm.objective import row_losses
from stabledllm.ppots.pareto import pareto_k
from stabledllm.variance.gradient_noise import HEAVY, UNIT

_STEP = 0x57E9_0000
_STANDARD = 0x57E9_8000
"""First step number of the draws that Adam's second moments are taken from: never those that are measured."""
_BYTES = 2**31
ADAM_EPS = 1e-8
TRANSFORMS = ("raw", "clipped", "update")
_Z = 1.959963984540054


@dataclass(frozen=True)
class StepGradients:
    """Inner products of S step gradients under each transform, float64, (S, S); steps of n rows at ``cost`` each."""

    gram: dict[str, Tensor]
    rows: int
    cost: float
    clipped_share: float
    """Share of steps whose norm exceeded the clip."""

    def variance(self, transform: str = "raw") -> Estimate:
        """tr Var(step gradient), unbiased; jackknife over steps."""
        return self._estimate(lambda k: _variance(k), transform, UNIT)

    def per_row_variance(self) -> Estimate:
        """n tr Var(step gradient) of the raw gradient."""
        return self._estimate(lambda k: self.rows * _variance(k), "raw", UNIT)

    def mean_square(self, transform: str = "raw") -> Estimate:
        """Squared norm of the mean step gradient, from pairs of different steps."""
        return self._estimate(_mean_square, transform, UNIT)

    def noise_to_signal(self, transform: str = "raw") -> Estimate:
        """tr Var(step) / |mean|²."""
        return self._estimate(lambda k: _variance(k) / _mean_square(k), transform, "")

    def pareto_k(self, transform: str = "raw") -> float:
        """Shape of the tail of the steps' squared deviations; NaN for too few steps."""
        k = self.gram[transform]
        deviations = k.diagonal() - 2 * k.mean(1) + k.mean()
        return pareto_k(deviations.clamp(min=0).numpy())

    def _estimate(self, statistic: Callable[[Tensor], float], transform: str, unit: str) -> Estimate:
        k = self.gram[transform]
        n = len(k)
        stderr = spread(_left_out(statistic, k)) if n >= LEAST_ROWS else float("nan")
        return Estimate(value=statistic(k), stderr=stderr, n=n, unit=unit)


def ratio(one: StepGradients, other: StepGradients, transform: str) -> dict:
    """tr Var(step) / |mean|² over the other's, with a 95 % interval: joint jackknife over steps.

    Step s has the same data rows and random numbers in both (as many as both have rows), so they are left out together.
    """
    a, b = one.gram[transform], other.gram[transform]
    steps = min(len(a), len(b))

    def noise(k: Tensor) -> float:
        return _variance(k) / _mean_square(k)

    value = noise(a) / noise(b)
    left_out = _left_out(noise, a[:steps, :steps]) / _left_out(noise, b[:steps, :steps])
    half = _Z * spread(left_out)
    return {"value": value, "ci_low": value - half, "ci_high": value + half}


def _variance(k: Tensor) -> float:
    n = len(k)
    return float((k.trace() - k.sum() / n) / (n - 1))


def _mean_square(k: Tensor) -> float:
    n = len(k)
    return float((k.sum() - k.trace()) / (n * (n - 1)))


def _left_out(statistic: Callable[[Tensor], float], k: Tensor) -> Tensor:
    index = torch.arange(len(k))
    return torch.tensor([statistic(k[index != i][:, index != i]) for i in range(len(k))], dtype=torch.float64)


class StepMeter(Meter):
    """Draws training steps and takes their gradients by ordinary backward passes.

    Args:
        parameters: patterns of parameter names; None takes all that are trainable.
        clip: norm to which gradients are clipped before the optimizer sees them (the Trainer's default 1.0).
    """

    def __init__(self, *args, parameters: Sequence[str] | None = None, clip: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.parameters = chosen_parameters(self.model, parameters)
        self.clip = clip
        self.sizes = {name: p.numel() for name, p in self.parameters.items()}
        self.second_moment: dict[str, Tensor] | None = None

    def precondition(self, *, rows: int, steps: int, seed: int) -> None:
        """Adam's second moments: the mean square of Standard's clipped step gradients, on draws of their own."""
        method, total = Method(), {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        for s in range(steps):
            norm = self._step(method, method.sampler(), rows, seed, _STANDARD + s)
            for name, p in self.parameters.items():
                total[name] += (p.grad * self._factor(norm)) ** 2 / steps
        self.second_moment = total
        self._clear()

    def measure(self, method: Method, sampler: TSampler, *, rows: int, steps: int, seed: int) -> StepGradients:
        """``steps`` steps of ``rows`` iid data rows each, as training would draw them.

        ``update`` is the clipped gradient over the root of the second moments; it needs :meth:`precondition`.
        """
        wanted = [t for t in TRANSFORMS if t != "update" or self.second_moment is not None]
        wide = sum(self.sizes.values()) * 4 * steps * len(wanted) > _BYTES
        sketch = Sketch(self.sizes) if wide else None
        vectors: dict[str, list[Tensor]] = {t: [] for t in wanted}
        clipped, before = 0, self.forwards
        for s in range(steps):
            norm = self._step(method, sampler, rows, seed, _STEP + s)
            clipped += norm > self.clip
            for t in wanted:
                vectors[t].append(self._vector(t, norm, sketch))
        self._clear()
        gram = {t: (m @ m.T).double() for t, v in vectors.items() if (m := torch.stack(v)) is not None}
        return StepGradients(gram, rows, (self.forwards - before) / (rows * steps), clipped / steps)

    def _factor(self, norm: float) -> float:
        return min(1.0, self.clip / max(norm, 1e-12))

    def _vector(self, transform: str, norm: float, sketch: Sketch | None) -> Tensor:
        parts = []
        out = torch.zeros(1, sketch.places) if sketch else None
        for name, p in self.parameters.items():
            g = p.grad if transform == "raw" else p.grad * self._factor(norm)
            if transform == "update":
                g = g / (self.second_moment[name].sqrt() + ADAM_EPS)
            if sketch:
                sketch.add(out, name, g.reshape(1, -1).float().cpu())
            else:
                parts.append(g.flatten().float().cpu())
        return out[0] if sketch else torch.cat(parts)

    def _step(self, method: Method, sampler: TSampler, rows: int, seed: int, step: int) -> float:
        """Leave one step's gradient in ``.grad`` and return its norm."""
        self._clear()
        key = Key(seed, step)
        index = torch.arange(rows)
        drawn = (key.row_uniforms(Stream.RESAMPLE, index) * len(self.rows)).long()
        t = sampler.icdf(method.source.uniforms(key, rows, torch.device("cpu")))
        was_training = self.model.training
        self.model.eval()
        for chunk in self.chunks(drawn, method.views.count):
            batch, draw = self.draw(drawn, t, method, key, sampler, chunk)
            losses = row_losses(self.cross_entropies(batch, draw), draw.mask, draw.coefficient, draw.active)
            if losses.requires_grad:
                (losses.sum() / rows).backward()
        self.model.train(was_training)
        for p in self.parameters.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return float(torch.stack([p.grad.norm() for p in self.parameters.values()]).norm())

    def _clear(self) -> None:
        for p in self.model.parameters():
            p.grad = None


def heavy_tail(k: float) -> bool:
    """Whether a tail is too heavy for its mean's error to be trusted."""
    return not k < HEAVY
