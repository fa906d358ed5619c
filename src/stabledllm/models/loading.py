"""Loading of a model by its name, with its tokenizer and its special tokens."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stabledllm.config.run_folder import model_in
from stabledllm.errors import UserError
from stabledllm.models.block_layouts import BLOCK_LAYOUTS
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.families.attention import FLEX, check_back_end
from stabledllm.models.families.config import take_mask
from stabledllm.models.families.config_values import check_numbers
from stabledllm.models.families.mmada import MMadaModelLM
from stabledllm.models.families.native import load_native
from stabledllm.models.families.registry import find_family
from stabledllm.models.families.source import Source, find_folder, read_config
from stabledllm.models.families.weights import held_weights
from stabledllm.models.hf_tokenizer import HFTokenizer, load_tokenizer
from stabledllm.models.kind import is_autoregressive
from stabledllm.models.mask_choice import check_mask_choice
from stabledllm.models.names import is_adapter
from stabledllm.models.new import is_new, pattern_of
from stabledllm.models.quantised import keep_differentiable, quantisation
from stabledllm.models.shipped import shipped_folder
from stabledllm.models.soundness import check_finite, check_runs
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig, check_byte_vocabulary
from stabledllm.runtime.device import emulates
from stabledllm.runtime.folders import whole_folder
from stabledllm.runtime.showing import busy

_LARGE = 10_000_000
"""Parameters above which it is worth saying that a precision is slow."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in float32 (or another dtype, if asked), with its tokenizer and its name."""

    model: PreTrainedModel
    tokenizer: ByteTokenizer | HFTokenizer
    name: str

    @property
    def autoregressive(self) -> bool:
        """Whether it is an autoregressive model, which has no mask token."""
        return is_autoregressive(self.model)

    @property
    def mask_id(self) -> int | None:
        return None if self.autoregressive else self.model.config.mask_token_id

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokenizer's end-of-sequence token, then the token that ends a response where that is another one."""
        return tuple(dict.fromkeys((self.tokenizer.sequence_end_id, self.eos_id)))

    def save(self, folder: str | Path) -> None:
        """Write weights, config and tokenizer in the layout they came in; :func:`load_model` reads the folder."""
        with busy(f"writing the model to {folder}"), whole_folder(Path(folder)) as new:
            self.model.save_pretrained(new)
            self.tokenizer.save_pretrained(new)


def load_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    family: str = "auto",
    attention: str = "sdpa",
    end_token: str | None = None,
    trust_remote_code: bool = False,
    base: str | None = None,
    quantised: str | None = None,
    init_seed: int | None = None,
    allow_pickle: bool = False,
    mask_token_id: int | None = None,
) -> LoadedModel:
    """Load a model, or an adapter on its base, by its name.

    The name is ``tiny`` or ``tiny-mmada`` (shipped, no network), a local folder, or a name on the hub, in the hub's
    own layout. The folder of a run stands for the model in it, without the run's settings. ``new:`` before a shipped
    name or a folder: random weights of that shape, and the same tokenizer.

    Args:
        family: one of :data:`~stabledllm.models.families.registry.FAMILIES`, or ``auto``: what config.json says.
        attention: back end, see :data:`~stabledllm.models.families.attention.BACK_ENDS`.
        end_token: ends a response, see :class:`~stabledllm.models.hf_tokenizer.HFTokenizer`.
        trust_remote_code: run code that lies beside the weights, for models of no native family.
        base: the model to put an adapter on, instead of the base that it names.
        quantised: ``4bit`` or ``8bit``: bitsandbytes holds the weights of the linear layers in so many bits.
        init_seed: the seed of a new model's weights, 0 by default.
        allow_pickle: read weights from PyTorch's own files where there are no safetensors, as plain tensors only.
        mask_token_id: the mask token, instead of the one that the files or the published layout name.

    Raises:
        UserError: no such model, another family, an impossible value in its config, a missing, unexpected,
            mis-shaped or non-finite weight, a tokenizer that does not fit, no mask token, or an attention back end
            that is not installed.
    """
    with busy(f"loading the model '{name}'"):
        loaded = _load_model(
            name, dtype, family, attention, end_token, trust_remote_code, base, quantised, init_seed, allow_pickle,
            mask_token_id,
        )  # fmt: skip
    if emulates(dtype) and sum(p.numel() for p in loaded.model.parameters()) > _LARGE:
        warnings.warn(
            f"model '{name}': this CPU has no instructions for {str(dtype).removeprefix('torch.')} and is several "
            f"times slower in it than in float32; dtype=float32 is faster where it fits.",
            stacklevel=2,
        )
    return loaded


def _load_model(
    name: str,
    dtype: torch.dtype,
    family: str,
    attention: str,
    end_token: str | None,
    trust_remote_code: bool,
    base: str | None,
    quantised: str | None,
    init_seed: int | None,
    allow_pickle: bool,
    mask_token_id: int | None,
) -> LoadedModel:
    check_back_end(attention)
    name, base = model_in(name), base and model_in(base)
    if is_adapter(name):
        if mask_token_id is not None:
            check_mask_choice(mask_token_id, name)
        if init_seed is not None:
            raise UserError(f"key 'init_seed': expected a new model (new:tiny or new:FOLDER), found '{name}'.")
        loading = {"family": family, "attention": attention, "end_token": end_token}
        loading |= {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        from stabledllm.models.adapters import load_adapter

        adapted = load_adapter(
            name, lambda base_name: load_model(base_name, dtype, quantised=quantised, **loading), base, allow_pickle
        )
        check_finite(adapted.model, f"adapter '{name}'")
        check_runs(adapted.model, f"adapter '{name}'")
        return adapted
    if base is not None:
        raise UserError(f"model '{name}': expected an adapter's folder to take base '{base}', found none.")
    if is_new(name):
        init_seed = init_seed or 0
        if quantised:
            raise UserError(f"model '{name}': expected trained weights to hold in {quantised}, found a new model.")
    elif init_seed is not None:
        raise UserError(f"key 'init_seed': expected a new model (new:tiny or new:FOLDER), found '{name}'.")
    folder = model_folder(pattern_of(name), allow_pickle)
    config, extra = read_config(folder), quantisation(quantised, dtype)
    source = Source(name, folder, config, dtype, attention, trust_remote_code, extra, init_seed)
    tiny = source.model_type == TinyMDMConfig.model_type
    kind = None if tiny else find_family(source, family)
    if tiny:
        _refuse_choices(source, family, end_token, mask_token_id)
    elif attention == FLEX and source.model_type not in BLOCK_LAYOUTS:
        raise UserError(
            f"{source.what}: expected a model in blocks for attention 'flex_attention', found another; write 'sdpa'."
        )
    if init_seed is None:
        source = replace(source, held=held_weights(folder, source.what, allow_pickle))
    check_numbers(config, str(source.config_file), source.held and source.held.shapes)
    loaded = _load_tiny(source) if tiny else _with_tokenizer(kind.load(source), source, end_token, mask_token_id)
    if init_seed is None:
        check_finite(loaded.model, source.what)
    check_runs(loaded.model, source.what)
    return loaded


def _with_tokenizer(
    model: PreTrainedModel, source: Source, end_token: str | None, mask_token_id: int | None
) -> LoadedModel:
    folder, name = source.folder, source.name
    if mask_token_id is not None:
        take_mask(model.config, mask_token_id, source.what)
    keep_differentiable(model)
    masks = not is_autoregressive(model)
    tokenizer = load_tokenizer(
        folder,
        name,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        mask_token_id=getattr(model.config, "mask_token_id", None) if masks else None,
        end_token=end_token,
        trust_remote_code=source.trust_remote_code,
        needs_mask=masks,
        mask_given=mask_token_id is not None,
    )
    if masks:
        model.config.mask_token_id = tokenizer.mask_token_id
    if isinstance(model, MMadaModelLM):
        tokenizer.take_image_config(model.config)
    return LoadedModel(model, tokenizer, name)


def _refuse_choices(source: Source, family: str, end_token: str | None, mask_token_id: int | None) -> None:
    """Refuse options that the reference model does not have."""
    for key, value, only in (("family", family, "auto"), ("attention", source.attention, "sdpa")):
        if value != only:
            raise UserError(f"{source.what}: expected {key} '{only}' for the reference model, found '{value}'.")
    for key, value in (("end_token", end_token), ("mask_token_id", mask_token_id)):
        if value is not None:
            raise UserError(f"{source.what}: expected no {key} for the reference model, found '{value}'.")


def _load_tiny(source: Source) -> LoadedModel:
    model = load_native(TinyMDM, source)
    check_byte_vocabulary(model.config, source.what)
    keep_differentiable(model)
    return LoadedModel(model, ByteTokenizer(), source.name)


def model_folder(name: str, allow_pickle: bool = False) -> Path:
    """The folder with the files of the model or adapter of that name, which may be that of a run.

    Raises:
        UserError: no such model.
    """
    name = model_in(name)
    if is_adapter(name):
        return Path(name).expanduser()
    return shipped_folder(name) or find_folder(name, allow_pickle=allow_pickle)
