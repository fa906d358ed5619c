"""Small data sets in their own formats, and the real ones where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

WORDS = ("apples", "pears", "figs", "nuts", "plums", "dates", "limes", "peas", "beans", "corn")


def real_gsm8k(split: str) -> Path:
    """``gsm8k/SPLIT.jsonl`` under $STABLEDLLM_DATA or beside the repository; skips the test without it."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    for root in (os.environ.get("STABLEDLLM_DATA"), beside):
        if root and (path := Path(root) / "gsm8k" / f"{split}.jsonl").is_file():
            return path
    pytest.skip(f"GSM8K is not at hand; set STABLEDLLM_DATA to the folder that holds gsm8k/{split}.jsonl")


def question(i: int) -> str:
    """Question i; no two are alike."""
    return f"Ann has {i} {WORDS[i % 10]} and gets 2 more. How many?"


def gsm8k_row(i: int, text: str | None = None) -> dict:
    """A row of GSM8K."""
    return {"question": text or question(i), "answer": f"{i}+2=<<{i}+2={i + 2}>>{i + 2}\n#### {i + 2}"}


def write(path: Path, rows: list[dict]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def gsm8k_folder(folder: Path, train: list[dict] | None = None, test: list[dict] | None = None) -> Path:
    """A folder as the data set's own, 40 rows to train on and 10 to test."""
    write(folder / "train.jsonl", train or [gsm8k_row(i) for i in range(40)])
    write(folder / "test.jsonl", test or [gsm8k_row(i) for i in range(100, 110)])
    return folder


def openscience_row(i: int, answer: str = "B", **more) -> dict:
    """A row of OpenScienceReasoning-2."""
    return {"input": f"Question {i}: which?\nA) x\nB) y", "output": f"So it is \\boxed{{{answer}}}.", **more}
