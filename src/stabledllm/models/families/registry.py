"""The model families, and how a checkpoint's family is found. A new family is one entry of :data:`FAMILIES`.

The native families are recognised by the ``model_type`` of their config.json, the others by their architecture's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel

from stabledllm.errors import UserError
from stabledllm.models.block_layouts import FAST_DLLM, SDAR
from stabledllm.models.choices import check_family
from stabledllm.models.families.a2d import A2D_MODELS
from stabledllm.models.families.a2d_loading import is_a2d, load_a2d
from stabledllm.models.families.block_loading import load_blocks
from stabledllm.models.families.block_model import BLOCK_MODELS
from stabledllm.models.families.causal_lm import is_causal_lm, load_causal_lm
from stabledllm.models.families.dream import DreamModel
from stabledllm.models.families.llada import LLaDAModelLM
from stabledllm.models.families.llada_moe import LLaDAMoEModelLM
from stabledllm.models.families.masked_lm import has_own_code, is_masked_lm, load_masked_lm
from stabledllm.models.families.mmada import MMadaModelLM
from stabledllm.models.families.native import load_native
from stabledllm.models.families.source import Source
from stabledllm.models.kind import is_autoregressive
from stabledllm.models.tiny import TinyMDMConfig


@dataclass(frozen=True)
class Family:
    """A model family: ``accepts`` tells from a checkpoint's config whether it belongs to it; ``load`` loads the model.

    ``on_request`` accepts further checkpoints if the user names the family. ``kind``: a native family's class.
    """

    accepts: Callable[[Source], bool]
    load: Callable[[Source], PreTrainedModel]
    on_request: Callable[[Source], bool] = lambda _: False
    kind: type[PreTrainedModel] | None = None


def _native(kind: type) -> Family:
    return _loading(kind, lambda source: source.model_type == kind.config_class.model_type)


def _loading(kind: type, accepts: Callable[[Source], bool]) -> Family:
    return Family(accepts, partial(load_native, kind), kind=kind)


def _in_blocks(model_type: str) -> Family:
    kind = BLOCK_MODELS[model_type]
    return Family(lambda source: source.model_type == model_type, load_blocks, kind=kind)


def _has_experts(source: Source) -> bool:
    return bool(source.config.get("num_experts"))


# The hub's LLaDA-MoE files say "llada", as those of LLaDA do; peers tell their users to write "lladamoe".
_LLADA = ("llada", "lladamoe", "llada_moe")

# In the order in which they are asked.
FAMILIES: dict[str, Family] = {
    "llada": _loading(LLaDAModelLM, lambda source: source.model_type == "llada" and not _has_experts(source)),
    "llada-moe": _loading(LLaDAMoEModelLM, lambda source: source.model_type in _LLADA and _has_experts(source)),
    "dream": _native(DreamModel),
    "mmada": _native(MMadaModelLM),
    "a2d": Family(is_a2d, load_a2d),
    "sdar": _in_blocks(SDAR),
    "fast-dllm": _in_blocks(FAST_DLLM),
    "mlm": Family(is_masked_lm, load_masked_lm, on_request=has_own_code),
    "arm": Family(is_causal_lm, load_causal_lm),
}
# Layouts that are known and not implemented.
_REFUSED = {"llada2_moe": "LLaDA 2 (experts, blocks)", "sdar_moe": "SDAR with experts, such as SDAR-30B-A3B"}


def find_family(source: Source, name: str = "auto") -> Family:
    """The family asked for, or with ``auto`` the first that accepts the checkpoint.

    Raises:
        UserError: an unknown name, or a checkpoint of another family or of none.
    """
    check_family(name)
    if source.model_type in _REFUSED:
        raise UserError(
            f"model '{source.name}': expected one of the families {', '.join(FAMILIES)}, "
            f"found {_REFUSED[source.model_type]}, which is not implemented."
        )
    accepting = [name for name, family in FAMILIES.items() if family.accepts(source)]
    if name == "auto" and accepting:
        return FAMILIES[accepting[0]]
    if name in accepting or (name != "auto" and FAMILIES[name].on_request(source)):
        return FAMILIES[name]
    expected = f"family '{name}'" if name != "auto" else f"one of the families {', '.join(FAMILIES)}"
    found = f"one of '{accepting[0]}'" if accepting else "another model"
    how = "; a bidirectional one with code of its own loads as family mlm" if has_own_code(source) else ""
    architecture = (source.config.get("architectures") or ["unnamed"])[0]
    raise UserError(
        f"model '{source.name}': expected {expected}, found {found} (model_type {source.model_type!r}, "
        f"architecture {architecture}){how}."
    )


def family_of(model: PreTrainedModel) -> str:
    """The family of a loaded model by its name here, ``tiny`` for the reference model.

    Where a family has many architectures of transformers, its ``model_type`` stands behind it.
    """
    kind = model.config.model_type
    if kind == TinyMDMConfig.model_type:
        return "tiny"
    for name, family in FAMILIES.items():
        # By the config's class: the files of LLaDA-MoE say the same model_type as those of LLaDA.
        if family.kind is not None and type(model.config) is family.kind.config_class:
            return name
    name = "a2d" if kind in A2D_MODELS else "arm" if is_autoregressive(model) else "mlm"
    return f"{name} ({kind})"
