"""Low-rank adapters (Hu et al., arXiv:2106.09685) beside a frozen base, through peft: made, loaded, merged.

An adapter's folder holds the adapter alone and names its base; it can stand wherever a model's name is expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, load_peft_weights
from torch import nn

from stabledllm.errors import UserError
from stabledllm.models.adapter_base import ADAPTER_CONFIG, base_of, class_for_peft
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.families.experts import join_experts
from stabledllm.models.families.weights import shapes_in
from stabledllm.models.loading import LoadedModel
from stabledllm.models.pretrained import read_pretrained
from stabledllm.runtime.files import read_json, write_text

_SAFETENSORS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True)
class LoRAOptions:
    """The settings of a LoRA adapter: W + (alpha / rank) B A replaces W; A random from ``seed``, B zero, W frozen.

    ``target_modules``: names (or ends of names), or ``all-linear``: every linear layer but the output layer.
    ``modules_to_save``: modules trained whole, such as the output layer; copies of them are in the adapter.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    modules_to_save: tuple[str, ...] = ()
    seed: int = 0


class AdaptedModel(PeftModel):
    """A base model with its adapter. It is called as the base is; saving writes the adapter alone and asks no hub."""

    def save_pretrained(self, save_directory: str, is_main_process: bool = True, **kwargs) -> None:
        """Write the adapter; its config names the class that plain peft loads the base with, where there is one."""
        only_ours = {"save_embedding_layers": False, "is_main_process": is_main_process}
        super().save_pretrained(save_directory, **(kwargs | only_ours))
        path = Path(save_directory) / ADAPTER_CONFIG
        if is_main_process:
            config = read_json(path) | {"auto_mapping": class_for_peft(self.get_base_model())}
            write_text(path, json.dumps(config, indent=2, sort_keys=True))

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write no model card: peft's is a form to be filled in."""


def add_lora(loaded: LoadedModel, options: LoRAOptions) -> LoadedModel:
    """Add new adapters to a model; they alone are trained, and until then the outputs are the base's.

    Raises:
        UserError: a model that is adapted already, names that match no module, or the output layer as a target.
    """
    if isinstance(loaded.model, PeftModel):
        raise UserError(
            f"key 'lora': expected a model without adapters, found the adapter '{loaded.name}'; merge it first, or "
            f"leave 'lora' out to train it further."
        )
    names = [name for name, _ in loaded.model.named_modules()]
    targets = options.target_modules
    for key, given in (("target_modules", targets), ("modules_to_save", options.modules_to_save)):
        for end in () if isinstance(given, str) else given:
            if not any(name == end or name.endswith(f".{end}") for name in names):
                raise UserError(f"key 'lora.{key}': expected names of the model's modules, found '{end}'.")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(options.modules_to_save) or None,
        base_model_name_or_path=_absolute_name(loaded.name),
    )
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        try:
            model = AdaptedModel(loaded.model, config)
        except ValueError as error:
            raise UserError(f"key 'lora': expected targets that peft can adapt, found: {error}") from None
    _untie(model)
    # The loss uses the output layer's weight and never calls the layer: an adapter beside it would have no effect.
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            "key 'lora.target_modules': expected layers before the output layer, found the output layer; train it "
            "whole through lora.modules_to_save."
        )
    join_experts(model)
    return replace(loaded, model=model)


def load_adapter(
    name: str, load_base: Callable[[str], LoadedModel], base: str | None = None, allow_pickle: bool = False
) -> LoadedModel:
    """Load the adapter in a folder onto the base that it names, or onto ``base``; it can be trained further.

    Args:
        load_base: loads a model by its name. allow_pickle: read PyTorch's own file where there is no other.

    Raises:
        UserError: no weights, a base that is missing or itself an adapter, a config that asks for more than the
            weights, or weights that do not fit the base.
    """
    folder, what = Path(name).expanduser(), f"adapter '{name}'"
    shapes = _shapes_of_weights(folder, what, allow_pickle)
    named = base or base_of(folder)
    if not named:
        raise UserError(f"{what}: expected a base model in {ADAPTER_CONFIG}, found none; name it with --base.")
    if (Path(named).expanduser() / ADAPTER_CONFIG).is_file():
        raise UserError(f"{what}: expected a base that is no adapter itself, found '{named}'; merge that one first.")
    with as_user_error(f"{what}: expected the config of an adapter in {folder / ADAPTER_CONFIG}"):
        config = read_pretrained(PeftConfig, folder)
        _check_config(config, what, shapes)
    try:
        loaded = load_base(named)
    except UserError as error:
        raise UserError(f"{what}: its base does not load ({error}); name another with --base.") from None
    # Adapters trained elsewhere may name a task, whose wrapper has its own forward; here the base's is used.
    config.task_type, config.inference_mode, config.base_model_name_or_path = None, False, _absolute_name(named)
    with as_user_error(f"{what}: expected one that fits its base '{named}'"):
        weights = load_peft_weights(str(folder), device="cpu")
        with torch.random.fork_rng():
            model = AdaptedModel(loaded.model, config)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        for kind, keys in (("missing", expected - weights.keys()), ("unexpected", weights.keys() - expected)):
            if keys:
                raise UserError(f"{what}: expected the weights of its config, found {kind} {min(keys)}.")
        set_peft_model_state_dict(model, weights)
    _untie(model)
    join_experts(model)
    return LoadedModel(model, loaded.tokenizer, name)


def _shapes_of_weights(folder: Path, what: str, allow_pickle: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in the adapter's file."""
    for file, pickled in ((_SAFETENSORS, False), (_PICKLED, True)):
        if not (folder / file).is_file():
            continue
        if pickled and not allow_pickle:
            raise UserError(
                f"{what}: expected {_SAFETENSORS} in {folder}, found a pickled file only; allow_pickle=true reads it."
            )
        return shapes_in(folder / file, what)
    raise UserError(f"{what}: expected {_SAFETENSORS} beside {ADAPTER_CONFIG}, found no such file.")


def _check_config(config: PeftConfig, what: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse foreign code, and a rank that the weights do not have: matrices of that rank would be made first."""
    if getattr(config, "megatron_config", None) is not None:
        raise UserError(f"{what}: expected no megatron_config in {ADAPTER_CONFIG}, found one.")
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for rank in (getattr(config, "r", 1), *(getattr(config, "rank_pattern", None) or {}).values()):
        if type(rank) is not int or not 1 <= rank <= largest:
            raise UserError(f"{what}: expected a rank of its weights in {ADAPTER_CONFIG}, found {rank!r}.")
    for alpha in (getattr(config, "lora_alpha", 1), *(getattr(config, "alpha_pattern", None) or {}).values()):
        if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
            raise UserError(f"{what}: expected lora_alpha above 0 in {ADAPTER_CONFIG}, found {alpha!r}.")
    dropout = getattr(config, "lora_dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UserError(f"{what}: expected lora_dropout in [0, 1) in {ADAPTER_CONFIG}, found {dropout!r}.")


def merged(loaded: LoadedModel) -> LoadedModel:
    """The base with the adapter added to its weights: the same outputs, in the base's own layout when saved.

    Raises:
        UserError: a model without an adapter.
    """
    if not isinstance(loaded.model, PeftModel):
        raise UserError(
            f"merge: expected an adapter's folder (with {ADAPTER_CONFIG}), found the model '{loaded.name}'."
        )
    return replace(loaded, model=loaded.model.merge_and_unload())


def _untie(model: PeftModel) -> None:
    """Untie the embedding and the output layer where an adapter changes only one of them.

    The config must say so, or the saved model would be read as tied; and an embedding's adapter must not be added to
    the output layer when it is merged.
    """
    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    changed = any(isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) for layer in (embedding, head))
    if not changed or not getattr(base.config, "tie_word_embeddings", False):
        return
    if not isinstance(head, AuxiliaryTrainingWrapper):
        # BERT ties a bias along with the weight, and one of the two would be left out of the saved model.
        for name in ("weight", "bias") if isinstance(embedding, BaseTunerLayer) else ("bias",):
            if (shared := getattr(head, name, None)) is not None:
                setattr(head, name, nn.Parameter(shared.detach().clone(), requires_grad=False))
    base.config.tie_word_embeddings = False


def _absolute_name(name: str) -> str:
    """The name under which the base is found from any folder: the absolute path of a local one."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name
