"""The device that the user asked for (``--device``), kept in the environment so that processes of a run inherit it."""

from __future__ import annotations

import os
import platform
import re
from typing import TYPE_CHECKING

from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text

if TYPE_CHECKING:
    import torch

ASKED = "STABLEDLLM_DEVICE"
"""The variable that holds it: ``cpu``, ``cuda`` or ``mps``."""
NAMES = ("auto", "cpu", "cuda", "cuda:0", "mps")
"""What a shell may complete."""


def ask_for(name: str) -> None:
    """Keep the device for this process and those that it starts; call this before torch is imported.

    ``cuda:N`` is the N-th of the GPUs that are visible now, and the only one that torch will see.

    Raises:
        UserError: no such name, or a GPU by number where a launcher deals them out.
    """
    if name == "auto":
        os.environ.pop(ASKED, None)
        return
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"option '--device': expected auto, cpu, cuda, cuda:N or mps, found '{plain_text(name)}'.")
    kind, colon, number = name.partition(":")
    if colon:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"option '--device': expected no number beside accelerate launch, which deals the GPUs out, found "
                f"'{name}'."
            )
        visible = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
        if visible and int(number) >= len(visible):
            raise UserError(f"option '--device': expected a GPU below {len(visible)}, found '{name}'.")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if visible else number
    os.environ[ASKED] = kind


def asked() -> str | None:
    """The kind of device that was asked for; None where the machine decides."""
    return os.environ.get(ASKED) or None


def on_cpu() -> bool:
    """Whether a run that takes an accelerator where there is one stays on the CPU.

    Raises:
        UserError: an accelerator was asked for that this machine does not have.
    """
    import torch

    wanted = asked()
    if wanted in (None, "cpu"):
        return wanted == "cpu" or not torch.accelerator.is_available()
    refuse_missing(wanted)
    return False


def place(model: torch.nn.Module) -> None:
    """Move a model to the device that was asked for; without one it stays where it was loaded.

    Raises:
        UserError: this machine does not have it.
    """
    wanted = asked()
    if wanted is not None and next(model.parameters()).device.type != wanted:
        refuse_missing(wanted)
        model.to(wanted)


def emulates(dtype: torch.dtype) -> bool:
    """Whether a command computes on a CPU (AVX2 alone) for which oneDNN has no half precision of that kind.

    Such a CPU converts it piece by piece: a forward of SmolLM2-135M in bfloat16 on one core took 4.6 s, and 0.66 s in
    float32.
    """
    import torch

    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in names or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if asked() != "cpu" and torch.accelerator.is_available():
        return False
    supported = getattr(torch.ops.mkldnn, names[dtype], None)
    return supported is not None and not supported()


def refuse_missing(wanted: str | None) -> None:
    """Refuse a kind of device that this machine does not have.

    Raises:
        UserError: names what there is.
    """
    if wanted in (None, "cpu"):
        return
    import torch

    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if there is None or there.type != wanted:
        found = f"'{there.type}'" if there is not None else "a CPU alone"
        raise UserError(f"option '--device': expected '{wanted}' on this machine, found {found}.")
