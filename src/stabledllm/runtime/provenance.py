"""The versions and the device that a result came from."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("stabledllm", "torch", "transformers", "accelerate", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect numbers, as they were when this process first asked."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    # Kept: each is a file to parse, and a run asks half a dozen times.
    by_package = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            continue
    return by_package


def device_name(device: torch.device | str = "cpu") -> str:
    """The device in words."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
