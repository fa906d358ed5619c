"""A model of one's own, a function from ids to logits, in the form in which meters call models.

Legend: N rows, L positions, S selected positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabledllm.errors import UserError, did_you_mean
from stabledllm.models.loss_head import widened

ModelFn = Callable[[Tensor, Tensor], object]
"""Called as ``model_fn(input_ids, attention_mask)``, int64 and bool, (N, L); gives logits (N, L, V) or ``.logits``."""
_NAMES = "input_ids", "attention_mask"
_WRAPPED = ("module", "_orig_mod", "base_model", "model")
"""Where wrappers (data-parallel ones, compiled ones, peft) hold the model whose arguments they hand on."""
Parameters = Iterable[str] | Iterable[Tensor] | str | None


class OwnModel(nn.Module):
    """A model that is called as ``model(ids, attention_mask, selected=mask, targets=ids).nll``.

    Its parameters are those of ``model_fn`` where that is a module, under their own names; of a function they are what
    :meth:`measure_gradient_of` was given.

    Args:
        shift: whether the logits at position i predict token i + 1, as Dream's do.
        head: the output layer or its name, for ``ppots-head``; without it what ``get_output_embeddings`` gives.
        device: where ids are put; without it where the first parameter is.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        *,
        shift: bool = False,
        head: nn.Module | str | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.model_fn, self.shift = model_fn, shift
        self.is_module = isinstance(model_fn, nn.Module)
        self.by_name = _takes_names(model_fn)
        self.head = [_head_of(model_fn, head)]  # in a list, or it would be registered a second time
        self._given: dict[str, Tensor] = {}
        if device is None:
            device = next((p.device for p in model_fn.parameters()), "cpu") if self.is_module else "cpu"
        # The meters ask the first parameter for the device; a function may have none.
        self._anchor = torch.empty(0, device=device)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module, but under the names that the user's own model gives them."""
        if self.is_module:
            yield from self.model_fn.named_parameters(prefix, True, remove_duplicate) if recurse else ()
        else:
            yield from (self._given or {"device": self._anchor}).items()

    def get_output_embeddings(self) -> nn.Module | None:
        """The output layer, None where nothing names it."""
        return self.head[0]

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits as the user's model gives them, (N, L, V).

        Raises:
            UserError: something else came out.
        """
        if self.by_name:
            out = self.model_fn(input_ids=input_ids, attention_mask=attention_mask)
        else:
            out = self.model_fn(input_ids, attention_mask)
        logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"model_fn: expected logits or an object with .logits, found {type(out).__name__}; pick them out as in "
                f"Lab(lambda ids, mask: model(ids)[0], ...)."
            )
        if logits.dim() != 3 or logits.shape[:2] != input_ids.shape:
            raise UserError(
                f"model_fn: expected logits of shape (rows, length, vocabulary) = ({input_ids.shape[0]}, "
                f"{input_ids.shape[1]}, V), found {tuple(logits.shape)}."
            )
        return logits

    @contextmanager
    def kept_gradients(self) -> Iterator[None]:
        """A context after which every parameter's ``.grad`` is what it was."""
        before = [(p, p.grad) for p in self.parameters()]
        try:
            yield
        finally:
            for p, grad in before:
                p.grad = grad

    def outputs_at(self, values: Tensor, selected: Tensor) -> Tensor:
        """Of the values at all positions, (N, L, ...), those that predict the selected ones, (S, ...), row-major."""
        row, position = selected.nonzero(as_tuple=True)
        return values[row, (position - 1).clamp(min=0) if self.shift else position]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, selected: Tensor, targets: Tensor, **_: object):
        """An object with ``nll``, the cross-entropies in nats at the selected positions, row-major, shape (S,)."""
        logits = self.outputs_at(self.logits(input_ids, attention_mask), selected)
        return SimpleNamespace(nll=F.cross_entropy(widened(logits), targets[selected], reduction="none"))

    def measure_gradient_of(self, parameters: Parameters) -> list[str] | None:
        """Patterns, as ``chosen_parameters`` takes them, of the parameters that are named or given.

        Args:
            parameters: parameters themselves, or of a module names, beginnings of names (``layers.3``) or patterns
                (``layers.*.weight``); None takes all that require a gradient.

        Raises:
            UserError: parameters that are not the model's or require no gradient, or none of a function.
        """
        if isinstance(parameters, str):
            parameters = [parameters]
        given = None if parameters is None else list(parameters)
        if not self.is_module:
            return self._of_function(given)
        if given is None:
            return None
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        names = {id(p): name for name, p in trained.items()}
        chosen = [name for one in given for name in _matching(one, trained, names)]
        if not chosen:
            raise UserError("parameters: expected at least one parameter, found none.")
        return [_literal(name) for name in dict.fromkeys(chosen)]

    def _of_function(self, given: list | None) -> None:
        if given is not None:
            for i, one in enumerate(given):
                if not isinstance(one, Tensor) or not one.is_leaf or not one.requires_grad:
                    found = f"the name '{one}'" if isinstance(one, str) else type(one).__name__
                    raise UserError(
                        f"parameters[{i}]: expected a tensor that requires a gradient, since model_fn is no module, "
                        f"found {found}."
                    )
            self._given = {f"parameters.{i}": one for i, one in enumerate(given)}
        if not self._given:
            raise UserError(
                "parameters: expected the tensors whose gradient is measured, since model_fn is no module, found none; "
                "pass parameters=model.parameters()."
            )


def name_of(model_fn: ModelFn) -> str:
    """What records call a model: the name of its class, or of the function."""
    if isinstance(model_fn, nn.Module):
        return type(model_fn).__name__
    return getattr(model_fn, "__name__", type(model_fn).__name__)


def _takes_names(model_fn: ModelFn) -> bool:
    """Whether the arguments are ``input_ids`` and ``attention_mask`` by name; their order then does not matter.

    LLaDA's second argument, for one, is ``inputs_embeds``.
    """
    while True:
        try:
            taken = inspect.signature(model_fn.forward if isinstance(model_fn, nn.Module) else model_fn).parameters
        except (TypeError, ValueError):  # a callable of C has no signature
            return False
        if set(_NAMES) <= set(taken):
            return True
        hands_on = any(one.kind is one.VAR_KEYWORD for one in taken.values())
        inner = [m for name in _WRAPPED if isinstance(m := getattr(model_fn, name, None), nn.Module)]
        if not hands_on or not inner:
            return False
        model_fn = inner[0]


def _head_of(model_fn: ModelFn, head: nn.Module | str | None) -> nn.Module | None:
    if isinstance(head, nn.Module):
        return head
    if head is not None:
        known = [name for name, _ in model_fn.named_modules() if name] if isinstance(model_fn, nn.Module) else []
        if head not in known:
            raise UserError(
                f"head: expected a module of the model or its name, found '{head}'{did_you_mean(head, known, most=12)}."
            )
        return model_fn.get_submodule(head)
    named = getattr(model_fn, "get_output_embeddings", None)
    return named() if callable(named) else None


def _matching(one: object, trained: dict[str, nn.Parameter], names: dict[int, str]) -> list[str]:
    """The names of the trained parameters that one given parameter, name, beginning or pattern stands for."""
    if isinstance(one, Tensor):
        if id(one) not in names:
            raise UserError(
                f"parameters: expected trained parameters of the model, found a tensor of shape {tuple(one.shape)} "
                f"that is not its own or requires no gradient."
            )
        return [names[id(one)]]
    if not isinstance(one, str):
        raise UserError(f"parameters: expected parameters or their names, found {type(one).__name__}.")
    found = [name for name in trained if name.startswith(f"{one}.") or fnmatchcase(name, one) or name == one]
    if not found:
        raise UserError(f"parameters: no trained parameter matches '{one}'{did_you_mean(one, trained, most=12)}.")
    return found


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
