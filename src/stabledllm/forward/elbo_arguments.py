"""Checks of the arguments of :func:`stabledllm.elbo`, made before the first forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real

import torch
from torch import Tensor

from stabledllm.data.rows import TokenRow, collate, marks_in
from stabledllm.errors import UserError
from stabledllm.method_checks import check_elbo, check_marks
from stabledllm.models.alignment import padding_last
from stabledllm.models.kind import is_autoregressive
from stabledllm.noise.blocks import Blocks
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective

_LEAST = {"budget": 1, "replicates": 1, "tokens_per_batch": 1, "seed": None, "step": 0}
_MASKS = ("attention_mask", "maskable", "delimiter")


def checked_method(method: str | Method, eps: float) -> Method:
    """The method under the bound with that eps, its parts as they are; refused unless it can estimate that bound.

    Raises:
        UserError: another kind of object, a method that :func:`check_elbo` refuses, one bound to other masks, or an
            eps outside [0, 1).

    >>> checked_method("lowdisc+fixedcount", eps=0.0).objective.eps
    0.0
    """
    if not isinstance(method, str | Method):
        raise UserError(f"elbo: expected a method's name or a Method, found {type(method).__name__}.")
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0.0 <= eps < 1.0:
        raise UserError(f"elbo: eps: expected a number in [0, 1), found {eps!r}.")
    objective = Objective(eps=eps)
    if isinstance(method, str):
        method = Method.parse(method, objective=objective)
    elif method.objective.counts != objective.counts:
        raise UserError(
            f"elbo: expected a method of the bound, found '{method.name}' under weighting "
            f"'{method.objective.weighting}'."
        )
    method = replace(method, objective=objective)
    check_elbo(method)
    return method


def check_numbers(**numbers: int | None) -> None:
    """Refuse arguments that are not whole numbers or are too small; ``replicates`` may be None.

    Raises:
        UserError: such an argument.

    >>> check_numbers(budget=8, replicates=None)
    >>> check_numbers(budget=0)
    Traceback (most recent call last):
    stabledllm.errors.UserError: elbo: budget: expected a whole number of at least 1, found 0.
    """
    for name, value in numbers.items():
        if value is None and name == "replicates":
            continue
        least = _LEAST[name]
        if not _is_whole(value) or (least is not None and value < least):
            bound = "" if least is None else f" of at least {least}"
            raise UserError(f"elbo: {name}: expected a whole number{bound}, found {value!r}.")


def checked_numbers(numbers: Sequence[int] | None, rows: int) -> list[int]:
    """The number of each row in its noise: those given, else 0, 1, ...

    Raises:
        UserError: not one whole number for each row, or the same one twice.

    >>> checked_numbers(None, 2)
    [0, 1]
    """
    if numbers is None:
        return list(range(rows))
    numbers = numbers.tolist() if isinstance(numbers, Tensor) else list(numbers)
    if len(numbers) != rows or not all(_is_whole(n) and 0 <= n < 2**31 for n in numbers):
        raise UserError(
            f"elbo: numbers: expected a whole number from 0 on for each of the {rows} rows, found {numbers}."
        )
    if len(set(numbers)) < rows:
        raise UserError(
            f"elbo: numbers: expected another number for each row, since two would share noise, found {numbers}."
        )
    return numbers


def checked_id(name: str, value: int) -> int:
    """The value, refused unless it is a whole number.

    Raises:
        UserError: another kind of value.

    >>> checked_id("pad_id", 7)
    7
    """
    if not _is_whole(value):
        raise UserError(f"elbo: {name}: expected a token id, found {value!r}.")
    return value


def checked_mask_id(model, given: int | None) -> int:
    """The id of the mask token: the one given, else that of the model's config.

    Raises:
        UserError: neither, one outside the model's vocabulary, or an autoregressive model.

    >>> checked_mask_id(object(), 7)
    7
    """
    config = getattr(model, "config", None)
    if is_autoregressive(model):
        raise UserError("elbo: expected a masked diffusion model, found an autoregressive one.")
    mask_id = getattr(config, "mask_token_id", None) if given is None else given
    if mask_id is None:
        raise UserError("elbo: expected mask_id or model.config.mask_token_id, found neither.")
    mask_id = checked_id("mask_id", mask_id)
    tokens = getattr(config, "embedding_rows", getattr(config, "vocab_size", None))
    if _is_whole(tokens) and not 0 <= mask_id < tokens:
        raise UserError(f"elbo: mask_id: expected one of the model's {tokens} tokens, found {mask_id}.")
    return mask_id


def checked_blocks(model, maskable: Tensor) -> tuple[Blocks | None, int]:
    """The blocks of a model that is trained in them, and the most that a row's response lies in; else None and 1.

    Args:
        maskable: the response tokens of each row, shape (B, L).

    Raises:
        UserError: response tokens that are not next to each other.

    >>> checked_blocks(object(), torch.tensor([[False, True]]))
    (None, 1)
    """
    size = getattr(getattr(model, "config", None), "block_size", None)
    if not size:
        return None, 1
    places = torch.arange(maskable.shape[1], device=maskable.device)
    last = torch.where(maskable, places, -1).amax(1)
    apart = (last - maskable.long().argmax(1) + 1 != maskable.sum(1)).nonzero()[:, 0].tolist()
    if apart:
        raise UserError(
            f"elbo: expected response tokens next to each other for a model in blocks, found others between those of "
            f"row {apart[0]}."
        )
    blocks = Blocks.of(model, size)
    return blocks, int(blocks.counts(maskable).max())


def checked_rows(
    rows: Sequence[TokenRow] | Mapping[str, Tensor], method: Method, pad_id: int, mask_id: int
) -> dict[str, Tensor]:
    """The rows as tensors of shape (B, L), with all padding on the right.

    Raises:
        UserError: no rows, tensors that are missing or of another kind or shape, a row without response tokens, or one
            that holds the mask token, which would be a target or look masked.

    >>> checked_rows([TokenRow([1, 2, 3], prompt_length=1)], Method(), pad_id=0, mask_id=9)["maskable"]
    tensor([[False,  True,  True]])
    """
    tensors = _tensors(rows) if isinstance(rows, Mapping) else _collated(rows, method, pad_id)
    empty = (~tensors["maskable"].any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise UserError(f"elbo: expected response tokens in every row, found none in row {empty[0]}.")
    masked = ((tensors["input_ids"] == mask_id) & tensors["attention_mask"]).any(1).nonzero()[:, 0].tolist()
    if masked:
        raise UserError(f"elbo: expected clean tokens, found the mask token {mask_id} in row {masked[0]}.")
    order = padding_last(tensors["attention_mask"])
    return tensors if order is None else {name: value.gather(1, order) for name, value in tensors.items()}


def _collated(rows: Sequence[TokenRow], method: Method, pad_id: int) -> dict[str, Tensor]:
    if isinstance(rows, Tensor) or not isinstance(rows, Sequence) or not all(isinstance(row, TokenRow) for row in rows):
        raise UserError(
            f"elbo: expected token rows, or tensors by the names input_ids, attention_mask and maskable, "
            f"found {type(rows).__name__}."
        )
    if not rows:
        raise UserError("elbo: expected at least one row, found none.")
    check_marks(method, marks_in(rows))
    return collate(rows, pad_id)


def _tensors(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name in ("input_ids", "attention_mask", "maskable"):
        if not isinstance(rows.get(name), Tensor):
            raise UserError(f"elbo: expected the rows' tensor '{name}', found {sorted(map(str, rows))}.")
    ids = rows["input_ids"]
    if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise UserError(
            f"elbo: expected 'input_ids' of whole numbers, shape (B, L), found {ids.dtype} of shape {tuple(ids.shape)}."
        )
    tensors = {"input_ids": ids.long()}
    for name in _MASKS:
        if rows.get(name) is None:
            continue
        value = rows[name]
        if value.shape != ids.shape:
            raise UserError(f"elbo: expected '{name}' of the shape (B, L) of 'input_ids', found {tuple(value.shape)}.")
        if value.dtype != torch.bool and bool(((value != 0) & (value != 1)).any()):
            raise UserError(f"elbo: expected '{name}' to be bool, or 0 and 1, found other values ({value.dtype}).")
        tensors[name] = value.bool()
    if not len(ids):
        raise UserError("elbo: expected at least one row, found none.")
    if bool((tensors["maskable"] & ~tensors["attention_mask"]).any()):
        raise UserError("elbo: expected maskable tokens within the attention mask, found padding among them.")
    return tensors


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
