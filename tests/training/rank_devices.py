"""One rank of the runs on two devices: ``python -m tests.training.rank_devices PLAN`` under torch's variables.

accelerate enables FSDP on accelerators only. To send the Trainer through all of that path on CPUs, a rank here says
that it is one of many GPUs once its process group is up, and nothing else about it changes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from stabledllm.config.settings import TrainSettings
from stabledllm.loss import reduce_loss, row_losses
from stabledllm.models.loading import load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.training import kinds, run
from tests.fakes.trainer import Recorded, RecordingTrainer

STEPS, ROWS, LENGTH = 6, 4, 9


class Recording(RecordingTrainer):
    """The last one made is kept, for what it drew."""

    last: RecordingTrainer

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.recorded = Recorded()
        Recording.last = self


def be_a_gpu(arguments: TrainingArguments) -> None:
    """In the place of the check that refuses FSDP on CPUs."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
DEEPSPEED = {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"}


def environment(sharded: str | None) -> dict[str, str]:
    """What ``accelerate launch`` would say: nothing (DDP), FSDP2's form of checkpoints, or ZeRO's stage."""
    if sharded is None:
        return {}
    if sharded.startswith("zero"):
        stage = sharded.removeprefix("zero")
        whole = {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": str(stage == "3")}
        return DEEPSPEED | whole | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    return FSDP | {"FSDP_STATE_DICT_TYPE": sharded}


@contextmanager
def launched(sharded: str | None, dtype: str = "float64") -> Iterator[None]:
    """A context in which a run takes this process for a rank of such a launch, and loads models in this precision."""
    wanted = getattr(torch, dtype)

    def load(name, **options):
        return load_model(name, **(options | {"dtype": wanted}))

    with (
        mock.patch.dict(os.environ, environment(sharded)),
        mock.patch("stabledllm.build.load_model", load),
        mock.patch.object(run, "refuse_silent_changes", be_a_gpu),
    ):
        yield
    unset_hf_deepspeed_config()  # as in a process of its own: else the next model is loaded in shards


def train(settings: dict, sharded: str | None, dtype: str = "float64") -> dict:
    """One run through ``training.run.train``; what this rank drew and lost."""
    with launched(sharded, dtype), mock.patch.object(kinds, "MDMTrainer", Recording):
        run.train(TrainSettings.model_validate(settings), say=lambda _: None)
    trainer = Recording.last
    zero = (sharded or "").startswith("zero")
    assert trainer.is_deepspeed_enabled == zero
    assert trainer.is_fsdp_enabled == (sharded is not None and not zero)
    assert not trainer.is_fsdp_enabled or any(isinstance(p, DTensor) for p in trainer.model.parameters())
    return {
        "draws": [[*key, t, masked] for key, (t, masked) in trainer.recorded.draws.items()],
        "losses": trainer.recorded.parts,
    }


def again_from_a_checkpoint(settings: dict, sharded: str | None, dtype: str) -> dict:
    """The run as it is after a kill at its first checkpoint."""
    whole, cut = Path(settings["out"]), Path(settings["out"] + "-cut")
    if int(os.environ.get("RANK", "0")) == 0:
        shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
        shutil.copy(whole / "p_of_t.json", cut)
    if dist.is_initialized():
        dist.barrier()
    return train(settings | {"out": str(cut)}, sharded, dtype)


def by_hand(ranks: int, rank: int) -> dict:
    """Steps of model, head and objective in a loop of one's own: losses, gradients, and steps without a mask here.

    Rows have one or two tokens to mask, so that a rank's whole share of a step is often left unmasked.
    """
    torch.manual_seed(0)
    model = TinyMDM(
        TinyMDMConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32)
    ).double()
    if ranks > 1:
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model.head)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method, objective = Method.parse("standard"), Objective()
    generator = torch.Generator().manual_seed(1)
    own = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    out: dict = {"losses": [], "empty": [], "gradients": []}
    for step in range(STEPS):
        ids = torch.randint(0, 256, (ROWS, LENGTH), generator=generator)[own]
        maskable = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
        maskable[:, -1] = maskable[0, -2] = True
        maskable = maskable[own]
        rows = Rows(
            position=torch.arange(ROWS)[own],
            step_rows=ROWS,
            maskable=maskable,
            token_index=torch.arange(LENGTH),
            delimiter=torch.zeros_like(maskable),
        )
        draw = method.draw(Key(5, step), rows, Uniform())
        noisy, mask, source = draw.noisy(ids, 256)
        nll = model(noisy, torch.ones_like(noisy, dtype=torch.bool), selected=mask, targets=ids[source]).nll
        losses = row_losses(nll, draw.mask, draw.coefficient, draw.active)
        loss = reduce_loss(losses, objective.row_weight(maskable), float(ROWS)) * ranks
        optimizer.zero_grad()
        loss.backward()
        whole = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
        out["gradients"].append(torch.cat([g.flatten() for g in whole]).tolist())
        out["losses"].append(float(loss.detach()) / ranks)
        out["empty"].append(not bool(mask.any()))
        optimizer.step()
    return out


def main(plan: Path) -> None:
    todo = json.loads(plan.read_text())
    rank = int(os.environ["RANK"])
    found = {}
    for name, part in todo.items():
        found[name] = train(**part)
        found[f"{name}-cut"] = again_from_a_checkpoint(**part)
    found["by hand"] = by_hand(2, rank)
    (plan.parent / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
