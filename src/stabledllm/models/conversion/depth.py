"""A shallower copy of a model, for machines without a GPU."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from stabledllm.errors import UserError


def evenly_spaced(layers: int, kept: int) -> list[int]:
    """The numbers of ``kept`` of so many layers, evenly spaced; the first and, of several, the last are among them.

    >>> evenly_spaced(30, 4)
    [0, 10, 19, 29]
    """
    if kept == 1:
        return [0]
    return [round(i * (layers - 1) / (kept - 1)) for i in range(kept)]


def keep_layers(model: PreTrainedModel, kept: int, what: str) -> list[int]:
    """Leave only ``kept`` evenly spaced layers in a model of transformers; returns their numbers.

    Raises:
        UserError: it has not so many.
    """
    body = model.base_model
    if not 1 <= kept <= len(body.layers):
        raise UserError(f"{what}: expected --layers from 1 to the model's {len(body.layers)}, found {kept}.")
    chosen = evenly_spaced(len(body.layers), kept)
    body.layers = nn.ModuleList(body.layers[number] for number in chosen)
    for index, layer in enumerate(body.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = kept
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:kept]
    return chosen
