"""The model, how it is loaded, and its adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stabledllm.config.settings.values import MOST, Name, PathText, Seed
from stabledllm.config.typed import Strict


class LoRASettings(Strict):
    """Low-rank adapters beside frozen weights; the run saves the adapter alone."""

    rank: int = Field(16, ge=1, le=MOST)
    """Rank of the adapters' matrices."""
    alpha: float = Field(32.0, gt=0)
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the adapters' inputs. Drawn by torch: a step's result then depends on how it is split over devices."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the adapted layers, or their ends; ``all-linear``: every linear layer but the output layer."""
    modules_to_save: list[str] = []
    """Modules trained whole and saved with the adapter, such as the output layer."""
    seed: Seed = 0
    """Seed of the adapters' first values; the same for every seed of an experiment, as a base's weights are."""


class RouterSettings(Strict):
    """Balancing of the load of a model's experts."""

    bias_rate: float = Field(0.0, ge=0, lt=1)
    """What each expert's choosing bias moves by after a step, up where its load is below the mean; 0.001 in LLaDA2's
    code, 0: none."""
    loss: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight of the balancing loss of each row, which is 1 where all experts are equally loaded; 0: none."""


class ModelSettings(Strict):
    """Which model, and how it is loaded."""

    model: PathText = "tiny"
    """``tiny``, a local folder, or a name on the hub; random weights: ``new:tiny``, ``new:FOLDER`` (config.json and
    tokenizer)."""
    init_seed: Seed | None = None
    """Seed of a new model's weights, 0 unless given; the same for every seed of an experiment."""
    family: Name = "auto"
    """``llada``, ``llada-moe``, ``llada2``, ``dream``, ``mmada``, ``sdar``, ``fast-dllm``, ``mlm``, ``arm``; ``auto``:
    what the model's config.json says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights; mixed precision over float32 weights is ``trainer.bf16``."""
    attention: Name = "sdpa"
    """Back end: ``sdpa``, ``eager`` or ``flash_attention_2``; ``flex_attention`` for models in blocks, on CUDA."""
    end_token: Name | None = None
    """Ends a response; without it the token that closes an assistant's turn in the model's chat template."""
    mask_token_id: int | None = Field(None, ge=0, le=MOST)
    """Id of the mask token, instead of the one that config.json or the tokenizer names or that a published layout has;
    the config.json of a model that is saved then says it."""
    trust_remote_code: bool = False
    """Run code that lies beside the weights; needed only for models of no native family."""
    allow_pickle: bool = False
    """Read weights from PyTorch's own files (``*.bin``) where there are no safetensors, as plain tensors only."""
