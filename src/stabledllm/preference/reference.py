"""The reference that a policy is held against: a frozen model, the policy without its adapter, or kept values.

A copy of the policy, the policy without its adapter and kept values give the same numbers: the draws are functions of
the pair, so that they can be seen by two models, or by one model at two times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from stabledllm.errors import UserError
from stabledllm.models.evaluating import evaluating, evaluating_as_trained, evaluating_beside
from stabledllm.models.loading import LoadedModel
from stabledllm.preference.draws import BoundEstimator, Pair, SharedDraws


class Reference(Protocol):
    """Anything that knows the reference's estimates for the draws of a step."""

    passes: int
    """Forward passes of each draw that a step makes for it: 1, or 0 where they were made before."""

    def values(self, policy: nn.Module, draws: SharedDraws, numbers: Sequence[int], epoch: int | None) -> Tensor:
        """The estimates of both responses in nats, shape (B, 2, R).

        Args:
            policy: the model that is trained, as the Trainer holds it. numbers: of the pairs in their data.
            epoch: of the training pairs; None for the held-out ones.
        """
        ...


class FrozenModel:
    """Another model, which is put into evaluation mode and trained no more.

    Args:
        model: of the same tokens as the policy, see :func:`check_reference`.
        place: puts it on the policy's devices, when it is first asked; without it on the policy's one device.
    """

    passes = 1

    def __init__(self, model: nn.Module, place: Callable[[nn.Module], nn.Module] | None = None):
        self.model, self._place, self._placed = model.eval().requires_grad_(False), place, False

    def placed(self, policy: nn.Module) -> nn.Module:
        """The model on the policy's devices."""
        if not self._placed:
            place = self._place or (lambda model: model.to(next(policy.parameters()).device))
            self.model, self._placed = place(self.model), True
        return self.model

    def values(self, policy: nn.Module, draws: SharedDraws, numbers: Sequence[int], epoch: int | None) -> Tensor:
        with evaluating_beside(policy, self.placed(policy)) as model:
            return draws.values(model)


class FrozenCopy(FrozenModel):
    """A copy of the model as it is now. It takes as much memory again as the weights."""

    def __init__(self, model: nn.Module, place: Callable[[nn.Module], nn.Module] | None = None):
        super().__init__(copy.deepcopy(model), place)


class AdapterOff:
    """The model itself with its adapter switched off; takes no memory.

    Args:
        key: of the setting that asks for it, for the refusal.

    Raises:
        UserError: the model has no adapter.
    """

    passes = 1

    def __init__(self, model: nn.Module, key: str = "dpo.reference"):
        if not callable(getattr(model, "disable_adapter", None)):
            raise UserError(f"{key}: expected a model with an adapter for 'adapter', found none.")

    def values(self, policy: nn.Module, draws: SharedDraws, numbers: Sequence[int], epoch: int | None) -> Tensor:
        model = getattr(policy, "module", policy)  # a data-parallel wrapper has no adapter of its own
        with evaluating_beside(model, model), model.disable_adapter():
            return draws.values(model)


class KeptValues:
    """Values that were computed before training, for every pair and epoch: no reference in memory, none in a step.

    Args:
        table: of the training pairs, shape (epochs, pairs, 2, R). held_out: of the others, shape (pairs, 2, R).
    """

    passes = 0

    def __init__(self, table: Tensor, held_out: Tensor | None = None):
        self.table, self.held_out = table, held_out

    def values(self, policy: nn.Module, draws: SharedDraws, numbers: Sequence[int], epoch: int | None) -> Tensor:
        device = next(policy.parameters()).device
        if epoch is None and self.held_out is not None:
            return self.held_out[list(numbers)].to(device)
        if epoch is None or epoch >= len(self.table):
            wanted = "held-out pairs" if epoch is None else f"epoch {epoch + 1}"
            raise UserError(f"dpo.reference: expected values of {wanted}, found those of {len(self.table)} epochs.")
        return self.table[epoch, list(numbers)].to(device)


def check_reference(policy: LoadedModel, reference: LoadedModel, key: str = "dpo.reference") -> None:
    """Refuse a reference whose bounds cannot be set beside the policy's: of other tokens, or in other blocks.

    Args:
        key: of the setting that names it.

    Raises:
        UserError: names both.
    """
    what = f"{key} '{reference.name}'"
    if reference.autoregressive:
        raise UserError(f"{what}: expected a masked diffusion model like '{policy.name}', found an autoregressive one.")
    ours, theirs = (each.model.get_input_embeddings().weight.shape[0] for each in (policy, reference))
    names = tuple(f"{name}_token_id" for name in ("mask", "eos"))
    ids = [(each.mask_id, each.eos_id) for each in (policy, reference)]
    vocabularies = [_vocabulary(each.tokenizer) for each in (policy, reference)]
    if type(policy.tokenizer) is not type(reference.tokenizer) or vocabularies[0] != vocabularies[1]:
        found = f"{ours:,} and {theirs:,} rows of embeddings" if ours != theirs else "another tokenizer"
        raise UserError(f"{what}: expected the vocabulary of '{policy.name}', found another ({found}).")
    for name, one, other in zip(names, *ids, strict=True):
        if one != other:
            raise UserError(f"{what}: expected {name} {one} as '{policy.name}' has, found {other}.")
    sizes = [getattr(each.model.config, "block_size", None) for each in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise UserError(f"{what}: expected block_size {sizes[0]} as '{policy.name}' has, found {sizes[1]}.")


def _vocabulary(tokenizer) -> dict[str, int] | None:
    """The number of each token; None for the tokenizer of bytes, which has but one."""
    asked = getattr(getattr(tokenizer, "_tokenizer", None), "get_vocab", None)
    return asked() if asked else None


def silence_dropout(model: nn.Module) -> None:
    """Switch a model's dropout off for good: policy and reference would not share its noise."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def values_of(
    model: nn.Module,
    pairs: Sequence[Pair],
    estimator: BoundEstimator,
    *,
    seed: int,
    epoch: int = 0,
    at_once: int = 8,
    held_out: bool = False,
    progress: Callable[[int], object] = lambda pairs: None,
) -> Tensor:
    """A model's estimates for all pairs under an epoch's draws, in evaluation mode, on the CPU; shape (pairs, 2, R).

    Args:
        at_once: pairs of one call. held_out: whether they are evaluated; else they are predicted as in training.
        progress: called with the number of pairs that are done.
    """
    parts = []
    with (evaluating if held_out else evaluating_as_trained)(model):
        for start in range(0, len(pairs), at_once):
            some = pairs[start : start + at_once]
            numbers = range(start, start + len(some))
            parts.append(estimator.draw(model, some, numbers, seed=seed, step=epoch).values(model).cpu())
            progress(len(some))
    return torch.cat(parts)
