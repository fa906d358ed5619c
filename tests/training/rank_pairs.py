"""One rank of a two-rank run on preferences."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import torch.distributed as dist
from torch.distributed.tensor import DTensor

from stabledllm.config.settings import TrainSettings
from stabledllm.training import kinds, run
from stabledllm.training.equal_passes import EqualPasses
from tests.training.rank_devices import launched
from tests.training.test_preferences import Recording, make


def main(out: Path) -> None:
    trainer = make(out / "dpo", micro=4, accumulation=1, ddp_backend="gloo")
    trainer.train()
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    record = {"losses": list(trainer.recorded.values()), "margins": margins}
    (out / f"rank{trainer.args.process_index}.json").write_text(json.dumps(record))
    # Left to the interpreter's exit, gloo's threads sometimes abort the process.
    dist.destroy_process_group()
    os._exit(0)


class Last(Recording):
    """The last one made is kept."""

    last: Recording

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.recorded: dict[int, float] = {}
        Last.last = self


def train(settings: dict, sharded: str | None) -> dict:
    """One run through ``training.run.train``: this rank's parts of the losses, and the passes that it added."""
    added, made = [], EqualPasses.__init__

    def counting(self, draws, passes):
        added.append(passes - draws.passes)
        made(self, draws, passes)

    with (
        launched(sharded),
        mock.patch.object(kinds, "DPOTrainer", Last),
        mock.patch.object(EqualPasses, "__init__", counting),
    ):
        run.train(TrainSettings.model_validate(settings), say=lambda _: None)
    trainer = Last.last
    assert trainer.is_fsdp_enabled == (sharded is not None)
    models = [trainer.model, getattr(trainer.reference, "model", trainer.model)]
    if sharded:
        assert all(any(isinstance(p, DTensor) for p in model.parameters()) for model in models)
    return {"losses": {str(step): loss for step, loss in trainer.recorded.items()}, "added": added}


RESUMED = ("adapter", "copy")


def all_of(plan: Path) -> None:
    """Every run of a plan, some of them again from their checkpoint after step 2."""
    rank, found = int(os.environ["RANK"]), {}
    for name, part in json.loads(plan.read_text()).items():
        found[name] = train(**part)
        if name not in RESUMED:
            continue
        whole, cut = Path(part["settings"]["out"]), Path(part["settings"]["out"] + "-cut")
        if rank == 0:
            shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
        dist.barrier()
        found[f"{name}-cut"] = train(part["settings"] | {"out": str(cut)}, part["sharded"])
    (plan.parent / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
