"""Whether a mask token that a user names can be one, as far as names and shapes tell; no framework is loaded."""

from __future__ import annotations

from stabledllm.errors import UserError
from stabledllm.models.names import is_adapter
from stabledllm.models.new import pattern_of
from stabledllm.models.shapes import known_shape


def check_mask_choice(token: int, model: str, *, adapted: bool = False) -> None:
    """Refuse a mask token where no file could say it, or where the model has no such row.

    Args:
        adapted: whether adapters are to be trained.

    Raises:
        UserError: an adapter, the reference model, or a token beyond the embedding, where the model's shape is known.
    """
    if adapted:
        raise UserError(
            f"key 'mask_token_id': expected none beside 'lora', since an adapter's files cannot say it, found {token}; "
            f"write it into the base's config.json."
        )
    if is_adapter(model):
        raise UserError(
            f"key 'mask_token_id': expected none for the adapter '{model}', which has its base's, found {token}; write "
            f"it into the base's config.json."
        )
    shape = known_shape(pattern_of(model))
    if shape and shape.model_type == "stabledllm_tiny":
        raise UserError(f"model '{model}': expected no mask_token_id for the reference model, found '{token}'.")
    if shape and token >= shape.vocabulary:
        raise UserError(
            f"model '{model}': expected mask_token_id to be a token below the embedding's {shape.vocabulary} rows, "
            f"found {token}."
        )
