"""The exact gradients of single rows' losses, many rows in one forward and backward.

A batch's rows do not interact, so one backward of the sum of their losses gives every layer's output gradients row
by row; with the layer's inputs, stored in the forward pass, they give the gradients of its weights (Goodfellow,
arXiv:1510.01799). Models with parameters in other kinds of layer take one backward a row, with the same result; so do
those whose first batch, with unequal weights, does not give autograd's gradient (a weight used outside its layer), and
those whose layers cannot be recorded (one that is called twice).

Legend: n requested evaluations, m evaluations of a batch, N forward rows, L positions, S selected positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabledllm.forward.meter import Meter
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.loss import row_losses
from stabledllm.models.loss_head import OutputLayer, whole_logits
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.methods import Draw, Method
from stabledllm.noise.streams import Key

_LAYERS = (nn.Linear, OutputLayer, nn.Embedding, nn.RMSNorm, nn.LayerNorm)


class GradientBatch(NamedTuple):
    """The gradients of the m evaluations of one batch; the next batch overwrites them.

    >>> GradientBatch(torch.tensor([0]), losses=torch.ones(1), gradients=torch.zeros(1, 5)).gradients.shape
    torch.Size([1, 5])
    """

    index: Tensor
    """Index of each evaluation, shape (m,)."""
    losses: Tensor
    """In nats, float64, shape (m,)."""
    gradients: Tensor
    """Flat gradients in the parameters' dtype, shape (m, D), or their projections."""
    view_squares: Tensor | None = None
    """Sum over an evaluation's views of the squared norm of each view's part of the gradient, shape (m,); None where
    the parts are not known."""


class RowGradients(Meter):
    """A meter of the gradients of single row losses: views averaged, times the importance weight of a sampler if given.

    Args:
        parameters: patterns of parameter names; None takes all that are trainable.
        vectorised: whether many rows may share a backward; False takes one an evaluation, whatever the layers.

    Attributes:
        size: number of coordinates D of the gradients.

    >>> from stabledllm.gradient.example import example_meter
    >>> meter, t = example_meter(), torch.tensor([0.5, 1.0]).double()
    >>> batch = next(meter.gradients(torch.tensor([0, 1]), t, Method(), Key(0, 0)))
    >>> batch.gradients.shape == (2, meter.size)
    True
    """

    def __init__(
        self,
        *args,
        parameters: Sequence[str] | None = None,
        tokens_per_batch: int = 2048,
        vectorised: bool = True,
        **kwargs,
    ):
        super().__init__(*args, tokens_per_batch=tokens_per_batch, **kwargs)
        self.parameters = chosen_parameters(self.model, parameters)
        self.size = sum(p.numel() for p in self.parameters.values())
        self.layers = _layers_of(self.model, self.parameters) if vectorised else None
        self._checked = False
        self._buffer: Tensor | None = None

    def gradients(
        self, row: Tensor, t: Tensor, method: Method, key: Key, sampler: TSampler | None = None, start: int = 0
    ) -> Iterator[GradientBatch]:
        """Compute the gradients of n evaluations, batch by batch.

        Evaluation i draws its masks at position ``start + i`` of ``key``: the result does not depend on batching.
        Gradients are flattened in the order of :attr:`parameters`.

        Args:
            row: index of the row of each evaluation, shape (n,).
            t: its mask ratio, float64, shape (n,).
        """
        with self.mode(self.model):
            for chunk in self.chunks(row, method.views.count):
                batch, draw = self.draw(row, t, method, key, sampler or Uniform(), chunk, start)
                if self.layers and not self._checked:
                    self._check(batch, draw)
                losses, gradients, squares = (self._all if self.layers else self._one_by_one)(batch, draw)
                self.require_finite(losses, row[chunk])
                self.require_finite(torch.linalg.vector_norm(gradients, dim=1), row[chunk], "gradient norms")
                yield GradientBatch(chunk, losses.detach().double().cpu(), gradients, squares)

    def _check(self, batch: dict[str, Tensor], draw: Draw) -> None:
        """Take one backward a row from now on if a weighted sum of row gradients is not autograd's for that sum.

        So too where a layer cannot be recorded: one that is called twice, by keyword, or with the rows laid end to end.
        """
        self._checked, before, told = True, self.forwards, self.progress
        self.progress = None  # what is done twice counts once
        try:
            self._compare(batch, draw)
        finally:
            self.forwards, self.progress = before, told

    def _compare(self, batch: dict[str, Tensor], draw: Draw) -> None:
        try:
            losses, gradients, _ = self._all(batch, draw)
        except (RuntimeError, IndexError, ValueError):
            self.layers = None  # a fault of the model itself comes again, row by row
            return
        weight = torch.linspace(0.5, 1.5, len(losses), dtype=gradients.dtype, device=gradients.device)
        summed, again = weight @ gradients, self._losses(batch, draw)
        if not again.requires_grad:
            return
        exact = self._flat_gradient((again * weight).sum())
        if float((summed - exact).norm()) > 1e-3 * float(exact.norm()):
            self.layers = None

    def _zeros(self, rows: int) -> Tensor:
        """Zeros of shape (rows, D) in memory that all batches use: new pages cost as much time as the backward."""
        if self._buffer is None or len(self._buffer) < rows:
            like = next(iter(self.parameters.values()))
            self._buffer = torch.empty(rows, self.size, dtype=like.dtype, device=like.device)
        return self._buffer[:rows].zero_()

    def _losses(self, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        return row_losses(self.cross_entropies(batch, draw), draw.mask, draw.coefficient, draw.active)

    def _one_by_one(self, batch: dict[str, Tensor], draw: Draw) -> tuple[Tensor, Tensor, None]:
        losses, gradients = [], []
        for i in range(len(draw.active)):
            one = {name: value[i : i + 1] for name, value in batch.items()}
            part = draw.row(i)
            (loss,) = self._losses(one, part)
            losses.append(loss.detach())
            gradients.append(self._flat_gradient(loss))
        return torch.stack(losses), torch.stack(gradients), None

    def _flat_gradient(self, loss: Tensor) -> Tensor:
        """The gradient of a loss by autograd, shape (D,); zeros where nothing was masked."""
        parameters = list(self.parameters.values())
        if not loss.requires_grad:
            return torch.zeros(self.size, dtype=parameters[0].dtype, device=loss.device)
        by_parameter = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in by_parameter])

    def _all(self, batch: dict[str, Tensor], draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        calls: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def record(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
            if layer in calls:
                raise RuntimeError(f"{type(layer).__name__} is called twice in one forward")
            calls[layer] = (inputs[0].detach(), output)

        hooks = [layer.register_forward_hook(record) for layer in self.layers]
        try:
            with whole_logits():
                losses = self._losses(batch, draw)
        finally:
            for hook in hooks:
                hook.remove()
        used = [layer for layer in self.layers if layer in calls]
        outputs = torch.autograd.grad(losses.sum(), [calls[layer][1] for layer in used])
        source = draw.active.nonzero()[:, 0]
        selected = draw.mask[draw.active]
        places = _places(self.parameters)
        gradients = self._zeros(len(source))
        for layer, of_output in zip(used, outputs, strict=True):
            x = calls[layer][0]
            if x.dim() == (1 if isinstance(layer, nn.Embedding) else 2):  # selected positions only, as in the head
                x, of_output = (_by_row(value, selected) for value in (x, of_output))
            for name, value in _weight_gradients(layer, x, of_output).items():
                place = places.get(getattr(layer, name))
                if place is not None:
                    gradients[:, place] = value.flatten(1)
        squares = torch.linalg.vector_norm(gradients, dim=1) ** 2
        squares = squares.new_zeros(len(losses)).index_add_(0, source, squares).cpu()
        if len(source) > len(losses):  # several views of a row
            gradients = gradients.new_zeros(len(losses), self.size).index_add_(0, source, gradients)
        return losses, gradients, squares


def _layers_of(model: nn.Module, parameters: dict[str, nn.Parameter]) -> list[nn.Module] | None:
    """The layers that hold the parameters; None where one is of another kind, shares a parameter, or mixes rows."""
    if any(getattr(module, "mixes_rows", False) for module in model.modules()):
        return None
    layers = [m for m in model.modules() if any(p in set(parameters.values()) for p in m.parameters(recurse=False))]
    held = [p for layer in layers for p in layer.parameters(recurse=False)]
    plain = all(type(layer) in _LAYERS or _is_rms_norm(layer) for layer in layers) and len(held) == len(set(held))
    return layers if plain else None


def _is_rms_norm(layer: nn.Module) -> bool:
    """Whether it is a root-mean-square norm of transformers, which has a class of its own for every family."""
    return type(layer).__name__.endswith("RMSNorm") and hasattr(layer, "variance_epsilon")


def _places(parameters: dict[str, nn.Parameter]) -> dict[nn.Parameter, slice]:
    """The place of each parameter's gradient in the flat one."""
    out, start = {}, 0
    for parameter in parameters.values():
        out[parameter] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return out


def _by_row(values: Tensor, selected: Tensor) -> Tensor:
    """Values at the selected positions, (S, ...), put back to their rows, (N, L, ...); 0 elsewhere."""
    out = values.new_zeros(*selected.shape, *values.shape[1:])
    out[selected] = values
    return out


def _weight_gradients(layer: nn.Module, x: Tensor, of_output: Tensor) -> dict[str, Tensor]:
    """Gradients of a layer's parameters by forward row, from its input and its output's gradient, (N, L, ...)."""
    if isinstance(layer, nn.Embedding):
        out = of_output.new_zeros(len(x), *layer.weight.shape)
        out.scatter_add_(1, x[..., None].expand_as(of_output), of_output)
        if layer.padding_idx is not None:
            out[:, layer.padding_idx] = 0
        return {"weight": out}
    if isinstance(layer, nn.Linear):
        out = {"weight": of_output.flatten(1, -2).transpose(1, 2) @ x.flatten(1, -2)}
    else:
        if isinstance(layer, nn.RMSNorm):
            scaled = F.rms_norm(x, layer.normalized_shape, None, layer.eps)
        elif _is_rms_norm(layer):
            scaled = F.rms_norm(x, x.shape[-1:], None, layer.variance_epsilon)
        else:
            scaled = F.layer_norm(x, layer.normalized_shape, None, None, layer.eps)
        out = {"weight": (of_output * scaled).flatten(1, -2).sum(1)}
    if getattr(layer, "bias", None) is not None:
        out["bias"] = of_output.flatten(1, -2).sum(1)
    return out
