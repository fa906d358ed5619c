"""Which code, versions and device a result came from."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("stabledllm", "torch", "transformers", "accelerate", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device | str = "cpu") -> str:
    """The device in words."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
