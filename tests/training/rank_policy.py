"""One rank of a two-rank run of policy gradients."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from tests.training.test_policy import logged, losses, make


def main(out: Path) -> None:
    trainer = make(out / "grpo", micro=2, accumulation=1, ddp_backend="gloo")
    trainer.train()
    record = {
        "losses": losses(trainer),
        "reward": logged(trainer, "reward"),
        "totals": trainer.statistics.totals(),
    }
    (out / f"rank{trainer.args.process_index}.json").write_text(json.dumps(record))
    # Left to the interpreter's exit, gloo's threads sometimes abort the process.
    torch.distributed.destroy_process_group()
    os._exit(0)
