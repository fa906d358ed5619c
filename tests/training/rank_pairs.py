"""One rank of a two-rank run on preferences."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch.distributed as dist

from tests.training.test_preferences import make


def main(out: Path, make=make) -> None:
    trainer = make(out / "dpo", micro=4, accumulation=1, ddp_backend="gloo")
    trainer.train()
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    record = {"losses": list(trainer.recorded.values()), "margins": margins}
    (out / f"rank{trainer.args.process_index}.json").write_text(json.dumps(record))
    # Left to the interpreter's exit, gloo's threads sometimes abort the process.
    dist.destroy_process_group()
    os._exit(0)
