"""A second device on a machine that has none: real numbers on the CPU, and a GPU's refusals.

Tensors on it say ``cuda:0``. An operation whose tensors lie on both devices is refused as CUDA refuses it: only single
numbers (0-dimensional CPU tensors), indices of a tensor on the device and explicit copies may come from the CPU. So is
``numpy()`` without ``cpu()``. Values are those of the CPU, so that results can be compared bit for bit.

Not seen: what CUDA's kernels compute in another order, memory (so experts take one segment each, and no grouped
product), and streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

SECOND = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_NO_SINGLE_NUMBERS = {"aten::searchsorted", "aten::gather", "aten::scatter", "aten::index_select", "aten::cat"}
"""Operations that take a single number from the CPU no more than a vector."""
_WAITING = {"aten::_local_scalar_dense", "aten::nonzero"}
"""Operations whose result the CPU needs before it can go on."""


class OnSecond(Tensor):
    """A tensor of the second device; ``held`` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor):
        # Autograd has no queue for a CUDA device on a machine without one; that of "meta" is the CPU's.
        out = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device("meta"), layout=held.layout,
        )  # fmt: skip
        out.held = held
        return out

    device = property(lambda self: SECOND)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def __repr__(self, **_) -> str:
        return f"on the second device: {self.held}"

    def tolist(self):
        return self.held.tolist()

    def new_tensor(self, data, *, dtype=None, device=None):
        made = torch.tensor(data, dtype=dtype or self.dtype)
        return made.to(SECOND if device is None else device)

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    def cpu(self):
        return self.to(_CPU)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes what is asked for on the second device there, and counts what waits for its numbers."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = kwargs.get("device")
        if given is not None and torch.device(given).type in ("cuda", "meta"):
            return _run(func, args, kwargs)
        if any(isinstance(tensor, OnSecond) for tensor in _tensors(args, list(kwargs.values()))):
            if (name := _known(func).name) in _WAITING:
                self.waits[name.removeprefix("aten::")] += 1
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[_Factories]:
    """A context in which ``device="cuda"`` is the second device; ``waits`` counts what a GPU would wait for."""
    made = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}

    def copied(name):
        # torch makes these on the CPU, and copies them past every dispatcher.
        return lambda *args, device=None, **kwargs: made[name](*args, **kwargs).to(_CPU if device is None else device)

    with ExitStack() as patched:
        patched.enter_context(patch.object(torch.cuda, "_lazy_init", lambda: None))
        patched.enter_context(patch.object(torch.cuda, "get_device_name", lambda _=None: "second device"))
        patched.enter_context(patch.object(torch.cuda, "get_device_capability", lambda _=None: (9, 0)))
        for name in made:
            patched.enter_context(patch.object(torch, name, copied(name)))
        yield patched.enter_context(_Factories())


def moved(model: nn.Module) -> nn.Module:
    """The same model object with its parameters and buffers on the second device."""
    known: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                if value not in known:
                    known[value] = nn.Parameter(OnSecond(value.detach().clone()), requires_grad=value.requires_grad)
                module._parameters[name] = known[value]
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = known.setdefault(value, OnSecond(value))
    return model


class _Known(NamedTuple):
    """What is asked of an operation each time that it runs, read from its schema once: that costs more than the work.

    Its whole output is new tensors (``is_new``) unless it changes or aliases one of its arguments.
    """

    name: str
    is_copy: bool
    is_indexed: bool
    changes: bool
    is_new: bool
    takes_single_numbers: bool


@cache
def _known(func) -> _Known:
    schema = func._schema
    name, changes = schema.name, schema.is_mutable
    aliases = any(each.alias_info is not None for each in (*schema.arguments, *schema.returns))
    return _Known(
        name, name in _COPIES, name in _INDEXED, changes, not changes and not aliases, name not in _NO_SINGLE_NUMBERS
    )


def _tensors(*given) -> list[Tensor]:
    """The tensors among arguments, which lie in lists and tuples at most."""
    out: list[Tensor] = []
    for value in given:
        if isinstance(value, Tensor):
            out.append(value)
        elif isinstance(value, (list, tuple)):
            out += _tensors(*value)
    return out


def _run(func, args, kwargs):
    known, tensors = _known(func), _tensors(args, list(kwargs.values()))
    is_there = any(isinstance(tensor, OnSecond) for tensor in tensors)
    if is_there and not known.is_copy:
        _refuse_mixed(known, args, tensors)
    asked = kwargs.get("device")
    there = is_there if asked is None else torch.device(asked) != _CPU
    plain = {key: (_CPU if key == "device" and value is not None else _held(value)) for key, value in kwargs.items()}
    found = func(*map(_held, args), **plain)
    if not there and not known.changes:
        return found
    if known.is_new and type(found) is Tensor:
        return OnSecond(found)
    out = tree_map(lambda value: OnSecond(value) if type(value) is Tensor else value, found)
    return out if known.is_new else return_and_correct_aliasing(func, args, kwargs, out)


def _held(value):
    if isinstance(value, OnSecond):
        return value.held
    return type(value)(map(_held, value)) if type(value) in (list, tuple) else value


def _refuse_mixed(known: _Known, args, tensors: list[Tensor]) -> None:
    others = [tensor for tensor in tensors if not isinstance(tensor, OnSecond)]
    if not others:
        return
    if known.is_indexed and isinstance(args[0], OnSecond):
        indices = {id(leaf) for leaf in _tensors(args[1])}
        others = [tensor for tensor in others if id(tensor) not in indices]
    if known.takes_single_numbers and not (known.changes and not isinstance(args[0], OnSecond)):
        others = [tensor for tensor in others if tensor.dim()]
    if others:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({known.name}, shapes {[tuple(t.shape) for t in tensors]})"
        )
