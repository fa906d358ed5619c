"""Which autoregressive models can be converted, as their ``config.json`` tells; loads no framework."""

from __future__ import annotations

from typing import Any

from stabledllm.errors import UserError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""The ``model_type`` of the models that can be converted, with transformers' class for it."""
CONVERTIBLE = tuple(ARCHITECTURES)
_FULL = "full_attention"
_FORMS = {
    "architectures": (list, "a list"),
    "layer_types": (list, "a list"),
    "quantization_config": (dict, "an object"),
}


def check_convertible(config: dict[str, Any], what: str) -> None:
    """Refuse what cannot be converted, from the keys of config.json alone.

    Args:
        what: the words that begin the sentence.

    Raises:
        UserError: a key of another form, code of its own, another architecture, quantised weights, or a layer without
            full attention.
    """
    kind = config.get("model_type")
    for key, (form, words) in _FORMS.items():
        if not isinstance(config.get(key) or form(), form):
            raise UserError(f"{what}: expected {words} as {key}, found {config[key]!r}.")
    if config.get("auto_map"):
        raise UserError(f"{what}: expected one of transformers' own models, found one with code of its own (auto_map).")
    if kind not in CONVERTIBLE:
        raise UserError(f"{what}: expected model_type {', '.join(CONVERTIBLE)}, found {kind!r}.")
    expected, names = ARCHITECTURES[kind], config.get("architectures") or []
    if names and expected not in names:
        raise UserError(f"{what}: expected architecture {expected}, found {names[0]}.")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unnamed")
        raise UserError(
            f"{what}: expected weights as they were trained, found quantised ones ({method}); convert the model that "
            f"they were made from."
        )
    layers = sorted({str(layer) for layer in config.get("layer_types") or ()} - {_FULL})
    if config.get("use_sliding_window") or layers:
        found = layers[0] if layers else "a sliding window (use_sliding_window)"
        raise UserError(f"{what}: expected full attention in every layer, found {found}.")
