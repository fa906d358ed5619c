"""The command ``stabledllm env``: what a report of a mistake should say about the machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from stabledllm import __version__
from stabledllm.cli.printing import answer_all

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "scipy", "pydantic",
             "typer", "bitsandbytes", "deepspeed")  # fmt: skip
_VARIABLES = (
    "HF_HUB_OFFLINE", "HF_HOME", "STABLEDLLM_CACHE", "STABLEDLLM_DEVICE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "WORLD_SIZE",
)  # fmt: skip


def env(
    devices: Annotated[
        bool, typer.Option("--devices", help="Ask torch for its accelerators too, which takes a few seconds.")
    ] = False,
) -> None:
    """Versions, device, threads, cache folder, offline or not: for reports of mistakes."""
    lines = [*_versions(), *_machine()]
    lines += [("accelerator", _accelerators() if devices else f"{_gpus()}; --devices asks torch")]
    lines += [*_folders(), *((name, os.environ[name]) for name in _VARIABLES if name in os.environ)]
    answer_all(f"{name:20s} {value}" for name, value in lines)


def _versions() -> Iterator[tuple[str, str]]:
    yield "stabledllm", f"{__version__} ({Path(__file__).parents[1]})"
    yield "python", f"{platform.python_version()} ({sys.executable})"
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def _machine() -> Iterator[tuple[str, str]]:
    yield "system", platform.platform()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "processors", f"{usable} of {os.cpu_count()}"
    yield "threads", f"{os.environ.get('OMP_NUM_THREADS', usable)} (OMP_NUM_THREADS {_given('OMP_NUM_THREADS')})"


def _given(name: str) -> str:
    return "is set" if name in os.environ else "is not set"


def _gpus() -> str:
    """The GPUs that the operating system shows, without a word of torch."""
    nvidia = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [
        line.partition(":")[2].strip() for path in nvidia for line in path.read_text().splitlines() if "Model" in line
    ]
    if models:
        return f"{len(models)} NVIDIA GPU{'s' * (len(models) > 1)} ({', '.join(dict.fromkeys(models))})"
    return "Apple's, by mps" if (sys.platform, platform.machine()) == ("darwin", "arm64") else "no GPU of NVIDIA's seen"


def _accelerators() -> str:
    import torch

    if not torch.accelerator.is_available():
        return f"none: torch {torch.__version__} computes on the CPU, with {torch.get_num_threads()} threads"
    kind = torch.accelerator.current_accelerator().type
    if kind != "cuda":
        return kind
    properties = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    names = [f"cuda:{n} {p.name} {p.total_memory / 2**30:.0f} GiB" for n, p in enumerate(properties)]
    return f"{', '.join(names)}; CUDA {torch.version.cuda}"


def _folders() -> Iterator[tuple[str, str]]:
    from stabledllm.runtime.caches import cache_folder

    yield "cache of rows", str(cache_folder().expanduser())
    home = os.environ.get("HF_HUB_CACHE") or str(Path(os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub"))
    yield "cache of the hub", str(Path(home).expanduser())
    offline = os.environ.get("HF_HUB_OFFLINE", "1").upper() in ("1", "ON", "YES", "TRUE")
    yield "hub", "offline (HF_HUB_OFFLINE=0 allows downloads)" if offline else "online"
