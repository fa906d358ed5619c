"""Frozen weights in 4 or 8 bits (QLoRA, arXiv:2305.14314), through bitsandbytes, an extra of this package."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import nn

from stabledllm.errors import UserError


def quantisation(bits: str | None, dtype: torch.dtype) -> dict:
    """Arguments of ``from_pretrained`` that hold the linear layers' weights in ``4bit`` (NF4) or ``8bit``; {} for None.

    The output layer and the embedding stay as they are; ``dtype`` is what products are computed in.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if bits is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"key 'quantised': expected bitsandbytes for '{bits}', found it not installed "
            f"(pip install 'stabledllm[quantised]')."
        )
    from transformers import BitsAndBytesConfig

    # Quantised weights do not move: each rank loads them onto its own device.
    place = {"device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}} if torch.cuda.is_available() else {}
    if bits == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), **place}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )
    return {"quantization_config": config, **place}


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes on CPUs from repacking 4-bit weights at the first evaluation: the training steps after it
    would silently get no gradient through these layers."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
