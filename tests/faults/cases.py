"""A short run of each command that writes, what it needs, and what is compared when it was disturbed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.faults.forked import command

_SMALL = {
    "steps": 4, "save_every": 2, "eval_every": 4, "batch": 2, "log_every": 1, "eval_draws": 1, "data.train_rows": 8,
    "data.validation_rows": 2, "data.test_rows": 2, "generate_batch": 1, "decoding.length": 8, "decoding.steps": 2,
    "decoding.block": 8, "ppots.rows": 2, "ppots.rates": 4, "ppots.masks": 2, "ppots.starts": 1,
}  # fmt: skip
_RESPONSES = (
    "grpo.group=2", "grpo.inner=2", "grpo.beta=0.1", "grpo.rollout.length=8", "grpo.rollout.steps=2",
    "grpo.rollout.temperature=2", "trainer.warmup_steps=0", "trainer.learning_rate=1e-3", "untuned=false",
)  # fmt: skip
"""Responses of a small run of policy gradients."""
_PAIRS = (
    "steps=4", "save_every=2", "eval_every=4", "batch=2", "micro_batch=2", "log_every=1", "eval_draws=1",
    "data.validation_rows=2", "dpo.budget=2", "dpo.correction=none", "dpo.reference=kept", "trainer.warmup_steps=0",
    "trainer.learning_rate=1e-3", "untuned=false",
)  # fmt: skip
"""A small run on pairs."""
RUN = tuple(f"{key}={value}" for key, value in _SMALL.items())
_TIMES = {"seconds", "tokens_per_second", "started", "updated", "time", "devices", "out", "config"}
"""Keys of stored JSON that differ from run to run, or name the folder."""
_LEFT_OPEN = ("run.lock", "setup.lock", "claim.json", "progress.json")
"""Files that say who is at a folder and how far, not what came out."""


@dataclass(frozen=True)
class Case:
    """One command; ``{inputs}`` in an argument is the folder of :func:`inputs`."""

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda _: None
    once: bool = False
    """Whether the same command refuses what it has made."""

    def run(self, folder: Path, **how):
        """The command in its own folder."""
        return command(*(a.replace("{inputs}", str(inputs())) for a in self.arguments), cwd=folder, **how)


@cache
def inputs() -> Path:
    """What some commands start from: an adapter, completions, a fitted density. Made once a process."""
    home = Path(mkdtemp(prefix="faults-")).resolve()
    for arguments in (
        ("train", "sft-synthetic+lora", "out=lora", *RUN),
        (
            "fit",
            "--method",
            "ppots",
            "--out",
            "fit",
            "ppots.rows=2",
            "ppots.rates=4",
            "ppots.masks=2",
            "ppots.starts=1",
        ),
    ):
        ended = command(*arguments, cwd=home)
        assert ended.code == 0, ended.printed
    pairs = [{"prompt": f"{i}?", "chosen": f"It is {i}.", "rejected": "No!"} for i in range(12)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return home


def _with_a_density(folder: Path) -> None:
    shutil.copytree(inputs() / "fit", folder / "out")


CASES = (
    Case("train", ("train", "sft-synthetic", "out=out", *RUN)),
    Case(
        "averages",
        ("train", "sft-synthetic", "out=out", "average.ema=[0.9]", "average.power=[0.1]", "average.snapshots=2", *RUN),
    ),
    Case("lora", ("train", "sft-synthetic+lora", "out=out", "method=ppots", *RUN)),
    Case("dpo", ("train", "dpo", "model=tiny", "data.train={inputs}/pairs.jsonl", "out=out", *_PAIRS)),
    Case("grpo", ("train", "grpo", "model=tiny", "data.train=synthetic:easy", "out=out", *RUN, *_RESPONSES)),
    Case("eval", ("eval", "--out", "out", "--rows", "3", "--length", "8", "--steps", "2", "--batch", "1")),
    Case(
        "decompose",
        ("decompose", "--out", "out", "--methods", "standard", "rows=4", "rates=2", "masks=2", "steps=4",
         "probe.rows=2", "probe.rates=4", "probe.masks=2"),
    ),
    Case("fit", ("fit", "--out", "out", "ppots.rows=2", "ppots.rates=4", "ppots.masks=2", "ppots.starts=1")),
    Case(
        "experiment",
        ("experiment", "quickstart", "out=out", "methods=[standard,ppots]", "seeds=[1]",
         *(f"base.{each}" for each in RUN)),
    ),
    Case("merge", ("merge", "{inputs}/lora/model", "--out", "out"), once=True),
    Case("draw", ("generate", "--image", "a red circle", "--steps", "2", "--out", "out"), once=True),
    Case("encode", ("encode", "scenes", "--rows", "4", "cache=out")),
    Case("rescore", ("rescore", "{inputs}/lora/completions.jsonl", "--task", "synthetic", "--out", "out/scored.jsonl")),
    Case("report", ("report", "out"), _with_a_density),
    Case("cp", ("cp", "quickstart", "out/recipe.yaml"), once=True),
)  # fmt: skip


def found(folder: Path) -> dict[str, object]:
    """Every file of a command's output and what is in it, but for times; of checkpoints only that they are there."""
    out = folder / "out"
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in _LEFT_OPEN]
    kept = [path for path in files if not _is_left_of_a_finished_run(path)]
    return {str(path.relative_to(out)): _content(path) for path in kept}


def _is_left_of_a_finished_run(path: Path) -> bool:
    """A kill between ``run.json`` and the end leaves what was needed until then, which nobody reads any more."""
    return path.parent.name.endswith("journal") and any(path.parents[1].glob("*.json"))


def _content(path: Path) -> object:
    if any(part.startswith("checkpoint-") for part in path.parts) or path.name == "training_args.bin":
        return "there"
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "history.jsonl" or path.name.startswith("rollouts-"):
        return [_without_times(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_times(v) for key, v in value.items() if key not in _TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value
