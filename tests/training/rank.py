"""One rank of the two-rank runs: ``python -m tests.training.rank OUT METHOD ...``, with torch's variables set."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from stabledllm.training.callbacks import add_to
from stabledllm.training.expert_load import expert_load_of
from tests.fakes.streams import rows_of_steps
from tests.fakes.trainer import STEPS, make_trainer
from tests.models.families.cases import load


class Sees(TrainerCallback):
    """A callback of the user's own, which every rank calls."""

    def __init__(self):
        self.steps: list[int] = []

    def on_step_end(self, args, state, control, **_):
        self.steps.append(state.global_step)


def rows_for(name: str, out: Path) -> dict:
    """The method that a name begins with and, where it ends with ``@stream``, rows of the folder that are streamed, or
    with ``@experts`` the model with experts there, in blocks and packed, whose load is balanced in both ways, with
    ``@blocks`` a dense one in blocks."""
    method, _, kind = name.partition("@")
    if kind == "experts":
        model = load(out / "experts").double()
        balance = expert_load_of(model, name, bias_rate=0.01, loss=0.5)
        form = {"block_size": 4, "packing": True}
        return form | {"method": method, "model": model, "ids": (261, 256), "expert_load": balance}
    if kind == "blocks":
        return {"method": method, "model": load(out / "blocks").double(), "ids": (261, 256), "block_size": 4}
    more = {"train": rows_of_steps(out / "stream", STEPS, 8), "evaluated": []} if kind else {}
    return {"method": method} | more


def main(out: Path, methods: list[str]) -> None:
    for method in methods:
        trainer = make_trainer(out / method, micro=4, accumulation=1, ddp_backend="gloo", **rows_for(method, out))
        sees = Sees()
        add_to(trainer, [sees])
        trainer.train()
        draws = [[step, position, t, masked] for (step, position), (t, masked) in trainer.recorded.draws.items()]
        record = {"draws": draws, "losses": trainer.recorded.losses, "seen": sees.steps}
        (out / method / f"rank{trainer.args.process_index}.json").write_text(json.dumps(record))
    # Left to the interpreter's exit, gloo's threads sometimes abort the process.
    torch.distributed.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
