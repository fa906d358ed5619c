"""The smallest run that a user could start: a folder with a model of 10,000 weights, two files, a few steps."""

from __future__ import annotations

import json
from pathlib import Path

from stabledllm.config.settings import TrainSettings
from stabledllm.training import run
from tests.fakes import tiny


def write_model(folder: Path, seed: int = 0) -> Path:
    tiny.model(layers=1, seed=seed).float().save_pretrained(folder)
    return folder


def write_rows(path: Path, n: int, start: int = 0) -> Path:
    rows = [
        {"prompt": f"{i}+{i}=?", "response": f"It is {i + i} and {'so ' * (i % 5)}on"} for i in range(start, start + n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small_run(folder: Path) -> dict:
    """Settings of a run in ``folder / "run"``: 4 steps, a checkpoint every 2, losses logged every 3."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "train": f"jsonl:{write_rows(folder / 'train.jsonl', 10)}",
        "validation": f"jsonl:{write_rows(folder / 'validation.jsonl', 3, 100)}",
    }
    return {
        "model": str(write_model(folder / "base")),
        "data": data,
        "batch": 4,
        "steps": 4,
        "save_every": 2,
        "log_every": 3,
        "eval_draws": 1,
        "trainer": {"use_cpu": True},
        "out": str(folder / "run"),
    }


def merged(settings: dict, change: dict) -> dict:
    """Settings with some changed, groups key by key; ``None`` as a value stays one."""
    out = dict(settings)
    for key, value in change.items():
        out[key] = merged(out.get(key) or {}, value) if isinstance(value, dict) else value
    return out


def train(settings: dict, **change) -> tuple[dict, list[str]]:
    """What ``run.json`` holds after the run, and what was said."""
    said: list[str] = []
    record = run.train(TrainSettings.model_validate(merged(settings, change)), say=said.append)
    return record, said
