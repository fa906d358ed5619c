"""From an autoregressive model to a masked diffusion model with the same weights, in dllm's A2D layout.

Legend: L positions, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.conversion.depth import keep_layers
from stabledllm.models.conversion.mask_token import MaskToken, choose_mask
from stabledllm.models.conversion.options import ConversionOptions
from stabledllm.models.conversion.original import Original, load_original
from stabledllm.models.conversion.tokenizer_files import write_tokenizer
from stabledllm.models.families.a2d import A2D_MODELS, A2DModel
from stabledllm.models.hf_tokenizer import load_tokenizer
from stabledllm.runtime.files import write_json

RECORD = "stabledllm_conversion.json"
"""The file beside the weights that says what a model was converted from, and how."""
_DROPPED = (
    "_model_name_or_path", "_name_or_path", "architectures", "auto_map", "dtype", "layer_types", "rope_parameters",
    "torch_dtype", "transformers_version",
)  # fmt: skip
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_CHECKED = 16
"""Tokens of the row on which the converted model is compared with the original."""


def convert(
    name: str,
    folder: Path,
    options: ConversionOptions | None = None,
    *,
    allow_pickle: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Convert a Llama, Qwen2 or Qwen3 and write it into a folder, which :func:`load_model` and dllm read.

    Args:
        name: a folder, ``OWNER/NAME`` on the hub, or a GGUF file. say: takes the lines that tell of it.

    Returns:
        what was done, as it is written beside the weights; ``largest_difference``: of a causal run's next-token logits
        from the original's.

    Raises:
        UserError: options that the model does not allow, a model that cannot be converted, or other logits.
    """
    options = options or ConversionOptions()
    options.check()
    say(f"reading {name}")
    original = load_original(name, options.dtype, allow_pickle)
    what, kept = original.what, None
    if options.layers is not None:
        kept = keep_layers(original.model, options.layers, what)
    rows = original.model.get_input_embeddings().weight.shape[0]
    mask = choose_mask(original.tokenizer, rows, options.mask_token, _ends(original), what)
    model = _converted(original, mask, options)
    difference = largest_difference(original, model, mask)
    parameters = sum(weight.numel() for weight in model.parameters())
    say(f"{model.config.model_type}: {parameters:,} parameters, {model.config.num_hidden_layers} layers")
    say(f"mask token: {mask}")
    say(f"next-token logits of a causal run: at most {difference:g} from the original's")
    model.save_pretrained(folder)
    write_tokenizer(folder, original.tokenizer, mask, what)
    load_tokenizer(folder, name, vocab_size=model.config.vocab_size, mask_token_id=mask.id)  # refuses what cannot be
    record = {"original": name, **asdict(options), "mask": asdict(mask), "kept_layers": kept}
    record |= {"parameters": parameters, "largest_difference": difference}
    write_json(folder / RECORD, record)
    return record


@torch.no_grad()
def largest_difference(original: Original, model: A2DModel, mask: MaskToken) -> float:
    """The largest difference of next-token logits between the original and a causal run of the converted model.

    0 in float32: both run the same kernels on the same numbers. The mask token's own logit is left out, as its row may
    have been set anew.

    Raises:
        UserError: a difference that shows that this is another model.
    """
    rows = original.model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, rows - 1, _CHECKED).long()[None]
    ids[ids == mask.id] = (mask.id + 1) % rows
    expected = original.model(ids, use_cache=False).logits
    with model.causal():
        hidden = model.eval().hidden_states(ids)
    # As many rows as the original has, so that the product takes the same kernel.
    found = F.linear(hidden, model.get_output_embeddings().weight[:rows])
    difference = (found - expected).abs()
    if mask.id < rows:
        difference[..., mask.id] = 0
    largest, scale = float(difference.max()), float(expected.abs().max())
    if not largest <= 1e-3 * max(scale, 1.0):
        raise UserError(
            f"{original.what}: expected the original's next-token logits from the converted model, found a difference "
            f"of {largest:g}."
        )
    return largest


def _ends(original: Original) -> Iterable[int]:
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = original.keys.get(key)
        yield from value if isinstance(value, list) else [value]


def _converted(original: Original, mask: MaskToken, options: ConversionOptions) -> A2DModel:
    """The converted model, whose parameters are the original's own tensors, but for those with another mask row."""
    state, source = _weights(original, mask, options), original.model
    kind = A2D_MODELS[f"a2d-{source.config.model_type}"]
    keys = _keys(original, mask, options) | {"vocab_size": state[_EMBEDDING].shape[0]}
    with as_user_error(f"{original.what}: expected a config.json that can be converted"):
        config = kind.config_class.from_dict(keys)
        with torch.device("meta"):
            model = kind._from_config(config, attn_implementation="sdpa")
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.to(source.dtype)


def _keys(original: Original, mask: MaskToken, options: ConversionOptions) -> dict[str, Any]:
    """The original's keys of config.json in the form of transformers 4, and those of a converted model."""
    config = original.model.config
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    keys = {key: value for key, value in original.keys.items() if key not in _DROPPED}
    keys |= {
        "mask_token_id": mask.id,
        "model_type": f"a2d-{config.model_type}",
        "num_hidden_layers": config.num_hidden_layers,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "rope_theta": theta,
        "shift_logits": options.shift,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return keys | ({"anneal_steps": options.anneal_steps} if options.anneal_steps else {})


@torch.no_grad()
def _weights(original: Original, mask: MaskToken, options: ConversionOptions) -> dict[str, Tensor]:
    """The original's weights by their names; the mask token's rows set to the mean of the other tokens' where asked."""
    model, state = original.model, original.model.state_dict()
    if (options.mask_embedding or ("mean" if mask.kind == "new" else "kept")) == "kept":
        return state
    tokens = torch.tensor(sorted(set(original.tokenizer.get_vocab().values()) - {mask.id}))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    state[_EMBEDDING] = _with_mean(state[_EMBEDDING], mask.id, tokens)
    if tied:
        state[_HEAD] = state[_EMBEDDING]
    elif mask.kind == "new":
        state[_HEAD] = _with_mean(state[_HEAD], mask.id, tokens)
    return state


def _with_mean(weight_VD: Tensor, row: int, tokens: Tensor) -> Tensor:
    """A copy in which a row, or a new one behind the last, is the mean of the tokens' rows."""
    mean = weight_VD[tokens].float().mean(0, keepdim=True).to(weight_VD.dtype)
    return torch.cat((weight_VD[:row], mean, weight_VD[row + 1 :]))
