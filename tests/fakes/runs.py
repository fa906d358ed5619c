"""Folders of runs: written by hand, for what their names and files tell; and by training for a few steps."""

from __future__ import annotations

import json
from pathlib import Path

from stabledllm.config.settings import TrainSettings
from stabledllm.training.run import train


def write_run(folder: Path, *, record: str | None = "run.json", model: bool = True, config: dict | None = None, **more):
    """A run's folder without weights. ``record``: the file that says how it ended; ``more`` is added to it."""
    (folder / "model").mkdir(parents=True)
    if model:
        for name in ("config.json", "stabledllm.json"):
            (folder / "model" / name).write_text("{}", encoding="utf-8")
    if record:
        content = {"schema": "stabledllm/run/1", "config": config or {}, **more}
        (folder / record).write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_checkpoint(run: Path, step: int, config: dict | None = None, *, stamp: bool = True) -> Path:
    """A checkpoint without weights in a run's folder."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    if stamp:
        parts = [{"config": config}] if config else []
        (folder / "stabledllm.json").write_text(json.dumps({"parts": parts}), encoding="utf-8")
    return folder


def write_questions(path: Path, rows: int, first: int = 0, answer: str = "Is {}.") -> str:
    """JSON lines of questions whose answers have no mark, so that they are not scored; the data's specification."""
    questions = ({"question": f"What is {i} + 1?", "answer": answer.format(i + 1)} for i in range(first, first + rows))
    path.write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")
    return f"jsonl:{path}"


def train_briefly(out: Path, **settings) -> dict:
    """Train the shipped model for two steps and return ``run.json``."""
    brief = {"model": "tiny", "batch": 4, "steps": 2, "log_every": 1, "generate_batch": 8, "out": str(out)}
    return train(TrainSettings.model_validate(brief | settings), say=lambda _: None)
