"""The averages themselves: one float32 tensor for every trained one, on the rank that holds it.

``torch.optim.swa_utils.AveragedModel`` computes the same (a test holds them together), from a copy of the whole module
for each average: of a frozen base under adapters as well, of quantised weights, and in the weights' own precision, in
which bfloat16 loses small moves. Here only trained weights are copied, under FSDP2 only this rank's part of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from stabledllm.errors import UserError
from stabledllm.runtime.files import naming, reading
from stabledllm.runtime.folders import temporary_beside
from stabledllm.training.averages.places import file_of
from stabledllm.training.averages.rules import Rule

_FACTS = "stabledllm"
"""The entry of a file's metadata that says what the average is."""
_WRAPPED = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""Parts of the names of weights that only a wrapper adds."""


class Averages:
    """The averages of a model's trained weights. All of it is done by every rank; what is written, by the first one.

    Averages are float32, or float64 where the weights are. They read the weights and change none, but for
    :meth:`in_place`, which gives back the same bits.

    Args:
        rules: which averages. on_cpu: hold them in main memory.
    """

    def __init__(self, rules: Sequence[Rule], *, on_cpu: bool = False):
        self.rules, self.on_cpu = {rule.name: rule for rule in rules}, on_cpu
        self.counted = dict.fromkeys(self.rules, 0)
        """For each average, the number of steps in it."""
        self._model: nn.Module | None = None
        self._weights: dict[str, nn.Parameter] = {}
        self._held: dict[str, dict[str, Tensor]] = {}

    @property
    def ready(self) -> list[str]:
        """The names of the averages that hold a step at least; a tail begins late."""
        return [name for name, counted in self.counted.items() if counted]

    def attach(self, model: nn.Module) -> None:
        """Take the weights that are averaged: those of the model that are trained, as the optimizer has them."""
        self._model = model
        self._reshard()
        self._weights = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, step: int, steps: int) -> None:
        """Count the weights after a step of a run.

        Args:
            step: the number of steps done. steps: of the whole run.
        """
        moves = {}
        for name, rule in self.rules.items():
            counts = step > rule.begins_after(steps)
            self.counted[name] = self.counted[name] + 1 if counts else 0
            if counts:
                moves[name] = rule.move(self.counted[name])
        if not moves:
            return
        self._reshard()
        for key, weight in self._weights.items():
            own = local(weight)
            own = own.to(device="cpu" if self.on_cpu else own.device, dtype=_precision(own))
            for name, move in moves.items():
                held = self._held.setdefault(name, {})
                if key not in held:
                    held[key] = torch.zeros_like(own, memory_format=torch.contiguous_format)
                held[key].lerp_(own, move)

    @contextmanager
    def in_place(self, name: str) -> Iterator[None]:
        """While this context is open, the model has an average's weights, rounded to its own precision."""
        with torch.no_grad():
            self._reshard()
            kept = {key: local(weight).clone() for key, weight in self._weights.items()}
            self._put(self._held[name])
        try:
            yield
        finally:
            with torch.no_grad():
                self._reshard()
                self._put(kept)

    def save(self, folder: Path, names: Sequence[str] | None = None, *, writes: bool = True) -> None:
        """Write averages into a folder, a file for each, from however many shards; every rank must call this.

        Args:
            names: without them all that are ready. writes: whether this rank writes; the others send their parts.
        """
        for name in self.ready if names is None else names:
            whole = {}
            for key, held in self._held[name].items():
                tensor = self._whole(self._weights[key], held)
                if writes:
                    whole[key] = tensor.cpu()
            if writes:
                _write(file_of(folder, name), whole, name, self.counted[name])

    def load(self, folder: Path) -> None:
        """Take the averages of a checkpoint, onto however many ranks.

        Raises:
            UserError: one is missing that counts every step, or a file is another model's.
        """
        for name, rule in self.rules.items():
            path = file_of(folder, name)
            if not path.is_file():
                if rule.kind != "tail":
                    raise UserError(f"{path}: expected the average of the weights, found nothing.")
                continue
            with reading(path), safe_open(path, framework="pt") as file:
                if set(file.keys()) != set(self._weights):
                    raise UserError(f"{path}: expected an average of the weights that are trained, found others.")
                _, self.counted[name] = counted_in(file, path)
                self._held[name] = {key: self._part(w, file.get_tensor(key)) for key, w in self._weights.items()}

    def _put(self, values: dict[str, Tensor]) -> None:
        for key, weight in self._weights.items():
            local(weight).copy_(values[key])

    def _part(self, weight: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor, where its average is held."""
        if isinstance(weight, DTensor):
            whole = distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements).to_local()
        return whole.to("cpu" if self.on_cpu else local(weight).device).contiguous()

    @staticmethod
    def _whole(weight: nn.Parameter, held: Tensor) -> Tensor:
        """The whole of an average, of which this rank holds a part."""
        if not isinstance(weight, DTensor):
            return held
        part = held.to(local(weight).device)
        mesh, placements = weight.device_mesh, weight.placements
        of_all = DTensor.from_local(part, mesh, placements, shape=weight.shape, stride=weight.stride())
        return of_all.full_tensor()

    def _reshard(self) -> None:
        """Under FSDP2 give the root's weights back to their ranks, which an evaluation leaves whole."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def local(weight: Tensor) -> Tensor:
    """The part of a weight that this rank holds, sharing its memory."""
    weight = weight.detach()
    return weight.to_local() if isinstance(weight, DTensor) else weight


def plain_name(name: str) -> str:
    """The name of a weight in the bare model."""
    for part in _WRAPPED:
        name = name.replace(part, "")
    return name


def counted_in(file, path: Path) -> tuple[str, int]:
    """The name of the average in an open file, and the number of steps in it.

    Raises:
        UserError: the file is no average's.
    """
    try:
        facts = json.loads((file.metadata() or {})[_FACTS])
        return str(facts["average"]), int(facts["counted"])
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path}: expected an average of weights, found another file.") from None


def _write(path: Path, tensors: dict[str, Tensor], name: str, counted: int) -> None:
    """Write an average to a safetensors file, whole or not at all; equal ones give equal bytes."""
    facts = {_FACTS: json.dumps({"average": name, "counted": counted})}  # one entry: safetensors orders none
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    with naming(path):
        try:
            save_file(tensors, temporary, metadata=facts)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _precision(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
