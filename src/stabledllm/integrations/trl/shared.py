"""What both trainers need: a model that TRL takes, rows of responses, and one backward pass for each forward pass.

Legend: B rows of a micro-batch, L positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.preference.reference import silence_dropout

EVAL_SEED = 20_251_118
"""Of the noise of held-out rows: the same for every run and step, so that differences are paired."""


def by_name(function, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call by their names, so that a mixin may change some of them.

    >>> by_name(lambda model, args=None: None, ("m",), {})
    {'model': 'm'}
    """
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    return {**bound, **bound.pop("kwargs", {})}


def ready(model: Any, trainer: str) -> nn.Module:
    """The model as TRL wants it: with a generation config, and without dropout, whose noise draws do not share.

    Raises:
        UserError: a name in place of a model, or one that predicts next tokens.
    """
    if isinstance(model, str):
        raise UserError(
            f"{trainer}: expected a loaded model, found the name '{model}'; write "
            f"model=stabledllm.models.loading.load_model('{model}').model."
        )
    if getattr(model.config, "mask_token_id", None) is None:
        raise UserError(
            f"{trainer}: expected a masked diffusion model, whose config has mask_token_id, found a "
            f"{type(model).__name__} without."
        )
    if getattr(model, "generation_config", None) is None:
        model.generation_config = GenerationConfig(eos_token_id=getattr(model.config, "eos_token_id", None))
    silence_dropout(model)
    return model


def checked_estimator(estimator: Any, trainer: str) -> Any:
    """The estimator.

    Raises:
        UserError: something else.
    """
    if not callable(getattr(estimator, "draw", None)) or not hasattr(estimator, "of_tokens"):
        raise UserError(
            f"{trainer}: expected an estimator of log-likelihoods, such as BoundEstimator('lowdisc', budget=8) of "
            f"stabledllm.likelihood.bound, found {estimator!r}."
        )
    return estimator


def refuse_options(trainer: str, args: Any, wanted: dict[str, Any]) -> None:
    """Refuse arguments of TRL that mean nothing here: whatever is not at the value that leaves it off.

    Raises:
        UserError: names the first.
    """
    for name, off in wanted.items():
        if (found := getattr(args, name, off)) != off:
            raise UserError(
                f"{trainer}: expected {name}={off!r} for a masked diffusion model, found {found!r}; leave it out."
            )


def refuse_after(trainer: Any) -> None:
    """Refuse what TRL knows once it has been set up: divided weights, and losses of routers or pictures.

    Raises:
        UserError: names it.
    """
    name = type(trainer).__name__
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        found = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
        raise UserError(f"{name}: expected whole weights on every device, found {found}; launch without it.")
    if trainer.aux_loss_enabled:
        raise UserError(
            f"{name}: expected router_aux_loss_coef=0, since the bound has no part for routers, found "
            f"{trainer.router_aux_loss_coef:g}; write router_aux_loss_coef=0.0."
        )
    if getattr(trainer, "_is_vlm", False):
        raise UserError(f"{name}: expected a tokenizer as processing_class, found a processor of pictures.")


def rows_of(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, origins: list[str]) -> list[TokenRow]:
    """Prompts and responses of padded rows, of whichever side; all arguments have the shape (B, L).

    Raises:
        UserError: a row without a response.
    """
    rows = []
    for ids, real, response, origin in zip(
        input_ids.tolist(), attention_mask.tolist(), completion_mask.tolist(), origins, strict=True
    ):
        kept = [token for token, there in zip(ids, real, strict=True) if there]
        if not (length := sum(response)):
            raise UserError(f"{origin}: expected a response of at least one token, found an empty one.")
        rows.append(TokenRow(kept, len(kept) - length, origin=origin))
    return rows


def all_but_the_last(trainer: Any, model: nn.Module, parts: Iterator[Tensor], passes: int) -> Tensor:
    """Make the backward pass of every part but the last, which is returned with its graph.

    A part holds one forward's activations, which its backward pass frees: memory does not grow with their number. Ranks
    exchange gradients in the last one, which is the Trainer's.
    """
    with trainer.accelerator.no_sync(model):
        for _ in range(passes - 1):
            trainer.accelerator.backward(next(parts))
    return next(parts)
