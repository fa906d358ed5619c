"""What is said of the device: a half precision that the CPU has no instructions for."""

from __future__ import annotations

import warnings

import pytest
import torch

from stabledllm.models import loading
from stabledllm.runtime import device


@pytest.mark.parametrize(
    ("machine", "accelerator", "asked", "supported", "slow"),
    [
        ("x86_64", False, None, False, True),
        ("x86_64", False, None, True, False),
        ("x86_64", True, None, False, False),
        ("x86_64", True, "cpu", False, True),
        ("arm64", False, None, False, False),
    ],
)
def test_a_half_precision_is_slow_on_a_cpu_without_instructions_for_it(
    monkeypatch, machine, accelerator, asked, supported, slow
):
    monkeypatch.setattr(device, "asked", lambda: asked)
    monkeypatch.setattr(device.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        assert callable(getattr(torch.ops.mkldnn, name)), "torch has another name for it now"
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: supported)
    assert device.emulates(torch.bfloat16) == device.emulates(torch.float16) == slow
    assert not device.emulates(torch.float32)


@pytest.mark.parametrize(("large", "emulated"), [(1, True), (10**7, True), (1, False)])
def test_a_large_model_in_a_slow_precision_is_told_of(monkeypatch, large, emulated):
    monkeypatch.setattr(loading, "_LARGE", large)
    monkeypatch.setattr(loading, "emulates", lambda dtype: emulated and dtype == torch.bfloat16)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loading.load_model("tiny", torch.bfloat16)
        loading.load_model("tiny")
    said = [str(one.message) for one in told if "instructions" in str(one.message)]
    assert len(said) == (large == 1 and emulated)
    assert all(one.startswith("model 'tiny': this CPU has no instructions for bfloat16 and") for one in said)
