"""One rank of a two-rank run of either trainer; see ``test_ranks.py``."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file


def main(out: Path, make, **further) -> None:
    trainer = make(out / "run", micro=4, ddp_backend="gloo", **further)
    trainer.train()
    bare = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: p.detach().clone() for name, p in bare.named_parameters()}
    save_file(weights, out / f"rank{trainer.args.process_index}.safetensors")
    # Left to the interpreter's exit, gloo's threads sometimes abort the process.
    torch.distributed.destroy_process_group()
    os._exit(0)
