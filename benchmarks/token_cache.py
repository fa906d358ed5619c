"""What the cache of tokenised rows costs and saves, against rows in memory. Target: the second start in seconds.

Each start is a process of its own that reads generated rows of 200 tokens (half of them ids, half text) and takes one
step with the tiny model; memory is that process's peak above the same start on 64 rows.
`--rows 1000000 --only-cache` is the case of a million rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from pathlib import Path

from common import save

LENGTH, PROMPT = 200, 40


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--only-cache", action="store_true", help="leave the starts without a cache out")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="the first of them fills the cache used")
    parser.add_argument("--folder", type=Path, help="where the rows and the caches lie; a temporary folder without it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        small, data = folder / "small.jsonl", folder / "data.jsonl"
        write(small, 64)
        write(data, asked.rows)
        base = start(folder, small, {})["mib"]
        told = {}
        for workers in asked.workers:
            first = start(folder, data, {"cache": str(folder / f"cache{workers}"), "workers": workers})
            told[f"rows per second, {workers} workers"] = asked.rows / first["seconds"]
            if workers == asked.workers[0]:
                told |= {
                    "first start, seconds": first["seconds"],
                    "first start, MiB above the model": first["mib"] - base,
                }
        second = start(folder, data, {"cache": str(folder / f"cache{asked.workers[0]}")})
        told |= {
            "second start, seconds": second["seconds"],
            "second start, MiB above the model": second["mib"] - base,
            "second start / first start": second["seconds"] / told["first start, seconds"],
        }
        if not asked.only_cache:
            plain = start(folder, data, {})
            told |= {
                "second start / in memory": second["seconds"] / plain["seconds"],
                "memory, second start / in memory": (second["mib"] - base) / (plain["mib"] - base),
            }
    name = "token_cache" if asked.rows < 1_000_000 else "token_cache_million"
    save(name, told, rows=asked.rows, length=LENGTH)


def write(path: Path, rows: int) -> None:
    """Rows of 200 tokens of the byte tokenizer: every other one as ids, the others as a prompt and a response."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    pool = ["".join(rng.choices(letters, k=LENGTH)) for _ in range(1000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            ask, answer = f"{number} {pool[number % 1000]}"[: PROMPT - 2], pool[number % 997][: LENGTH - PROMPT - 1]
            row = {"prompt": ask, "response": answer}
            if number % 2:
                row = {"input_ids": list(f"{ask}??{answer}.".encode()), "prompt_length": PROMPT}
            file.write(json.dumps(row) + "\n")


def start(folder: Path, data: Path, settings: dict) -> dict:
    """The seconds from the settings to the end of the first step, and the peak memory, of a start in a new process."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_start, args=(its, str(folder / "run"), str(data), settings))
    process.start()
    result = ours.recv()
    process.join()
    print(data.name, settings.get("workers", ""), result, flush=True)
    return result


def _start(out, run: str, data: str, settings: dict) -> None:
    from stabledllm.config.settings import TrainSettings
    from stabledllm.training.run import train

    tree = {"train": f"jsonl:{data}", "validation_rows": 16, **settings}
    config = TrainSettings.model_validate(
        {"model": "tiny", "method": "standard", "out": f"{run}{time.time_ns()}", "data": tree, "steps": 1, "batch": 4}
    )
    before = time.perf_counter()
    train(config, say=lambda _: None)
    seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out.send({"seconds": seconds, "mib": peak})


if __name__ == "__main__":
    main()
