"""Whether options of decoding fit a model: asked before anything long is begun, and again before decoding."""

from __future__ import annotations

from stabledllm.decoding.options import DecodingOptions
from stabledllm.errors import UserError
from stabledllm.models.kind import is_autoregressive


def refuse_unsuited(model, options: DecodingOptions) -> None:
    """Refuse options that do not fit a masked diffusion model; an autoregressive one has a check of its own.

    Raises:
        UserError: blocks of a size that the model was not trained with, a cache of later blocks, or options of models
            in blocks, or of those with shifted logits, for another.
    """
    if is_autoregressive(model):
        return
    trained, shift = (getattr(model.config, name, None) for name in ("block_size", "shift_logits"))
    if not trained:
        _refuse_in_blocks(options)
        return
    if trained != options.block:
        raise UserError(f"decoding: expected block {trained}, with which the model was trained, found {options.block}.")
    if options.cache == "dual":
        raise UserError(
            "decoding.cache: expected 'prefix' for a model trained in blocks, where nothing sees a later block, found "
            "'dual'."
        )
    if options.first_token is not None and not shift:
        raise UserError(
            f"decoding.first_token: expected a model in blocks whose logits are shifted, such as Fast-dLLM v2, found "
            f"'{options.first_token}' for one that predicts each token at its own place; leave it out."
        )


def _refuse_in_blocks(options: DecodingOptions) -> None:
    for name, instead in (("sub_block", f"write block={options.sub_block}"), ("first_token", "leave it out")):
        if (value := getattr(options, name)) is not None:
            raise UserError(
                f"decoding.{name}: expected a model trained in blocks, found {value!r} for one that is not; {instead}."
            )
