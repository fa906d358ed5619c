"""One rank of the runs on responses with sharded weights: preferences and policy gradients."""

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
from tests.training import test_policy, test_preferences
from tests.training.rank_devices import launched

RESUMED = ("adapter", "copy", "policy", "policy of tokens")
AT = {"dpo": 2, "grpo": 3}
"""The step after which runs go on; of policy gradients the middle of a round of two."""


def digits(completions, **_):
    """The share of a completion's characters that are digits."""
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


def last_of(kind: type) -> type:
    """The class of Trainers of which the last one made is kept."""

    class Last(kind):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.recorded = {}
            Last.made = self

    return Last


def train(settings: dict, sharded: str | None) -> dict:
    """One run through ``training.run.train``: this rank's parts of the losses, and the passes that it added."""
    kind, added, made = settings["objective"]["kind"], [], EqualPasses.__init__
    name, recording = {
        "dpo": ("DPOTrainer", test_preferences.Recording), "grpo": ("GRPOTrainer", test_policy.Recording)
    }[kind]  # fmt: skip
    recording = last_of(recording)

    def counting(self, draws, passes):
        added.append(passes - draws.passes)
        made(self, draws, passes)

    with (
        launched(sharded),
        mock.patch.object(kinds, name, recording),
        mock.patch.object(EqualPasses, "__init__", counting),
    ):
        rewards = {"rewards": [digits]} if kind == "grpo" else {}
        run.train(TrainSettings.model_validate(settings), say=lambda _: None, **rewards)
    trainer = recording.made
    assert trainer.is_fsdp_enabled == (sharded is not None)
    for model in (trainer.model, getattr(trainer.reference, "model", trainer.model)) if sharded else ():
        layers = [p for name, p in model.named_parameters() if "blocks." in name]
        assert all(isinstance(p, DTensor) for p in layers), "no layer is whole between passes"
    return {"losses": {str(step): loss for step, loss in trainer.recorded.items()}, "added": added}


def all_of(plan: Path) -> None:
    """Every run of a plan, some of them again from a checkpoint."""
    rank, found = int(os.environ["RANK"]), {}
    for name, part in json.loads(plan.read_text()).items():
        found[name] = train(**part)
        if name not in RESUMED:
            continue
        settings = part["settings"]
        whole, cut = Path(settings["out"]), Path(settings["out"] + "-cut")
        if rank == 0:
            at = f"checkpoint-{AT[settings['objective']['kind']]}"
            shutil.copytree(whole / at, cut / at)
            if (whole / "rollouts").is_dir():
                shutil.copytree(whole / "rollouts", cut / "rollouts")
        dist.barrier()
        found[f"{name}-cut"] = train(settings | {"out": str(cut)}, part["sharded"])
    (plan.parent / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
