"""Loading of models whose layout is defined by transformers, or by code beside the weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.families.source import Source, read_config
from stabledllm.models.families.weights import compare_known_weights, of_more_layers, refuse_names
from stabledllm.models.new import pattern_of, with_first_values
from stabledllm.models.pretrained import read_pretrained


def load_transformers(interface: type, source: Source, back_end: str | None, *, strict: bool) -> PreTrainedModel:
    """Load a model through one of transformers' ``AutoModel`` interfaces, or make a new one.

    Code beside the weights runs only with ``source.trust_remote_code``; there is no prompt.

    Args:
        back_end: the attention back end; None leaves the choice to transformers. strict: refuse every weight of the
            files that the model does not use; else only those of layers beyond the config's.

    Raises:
        UserError: a config from which no model can be made, a back end that the model lacks, or weights that are
            missing, of another shape or unexpected.
    """
    with as_user_error(f"{source.what}: expected one that transformers can load"):
        config = read_pretrained(AutoConfig, source.folder, trust_remote_code=source.trust_remote_code)
        # transformers writes the back end into the configuration that it is given, so each model gets one of its own.
        create = partial(
            interface.from_config, attn_implementation=back_end, trust_remote_code=source.trust_remote_code
        )
        if source.init_seed is not None:
            return with_first_values(partial(create, config), source.init_seed, source.dtype, source.what)
        if _comparable(config):
            with torch.device("meta"):
                empty = create(config)
            expected = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
            compare_known_weights(source.held.shapes, source.what, expected, empty.base_model_prefix)
        model, info = read_pretrained(
            interface,
            source.folder,
            dtype=source.dtype,
            attn_implementation=back_end,
            trust_remote_code=source.trust_remote_code,
            use_safetensors=not source.held.pickled,
            output_loading_info=True,
            **source.extra,
        )
    for kind in ("missing", "mismatched", "unexpected"):
        names = info.get(f"{kind}_keys") or ()
        if kind == "unexpected" and not strict:
            names = of_more_layers(names, model.state_dict())
        refuse_names(source.what, kind, names)
    return model


def own_class(model: str) -> type | None:
    """transformers' class for the model in a local folder; None for any other model, or one with code of its own."""
    folder = Path(pattern_of(model)).expanduser()
    if not (folder / "config.json").is_file():
        return None
    config = read_config(folder)
    name = next(iter(config.get("architectures") or []), "")
    return None if config.get("auto_map") else getattr(transformers, name, None)


def _comparable(config: PretrainedConfig) -> bool:
    """Whether the files hold the weights as the model has them: packed ones and those of foreign code differ."""
    return getattr(config, "quantization_config", None) is None and not getattr(config, "auto_map", None)
