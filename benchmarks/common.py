"""Shared by the benchmarks: the tiny model's step, timing by medians, the JSON."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from stabledllm.runtime.files import write_json
from stabledllm.runtime.provenance import device_name, versions

RESULTS = Path(__file__).parent / "results"


def interleaved(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each task, the tasks taken in turns so that a slow moment hits all of them."""
    for task in tasks.values():
        task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def save(name: str, ratios: dict[str, float], **config: object) -> None:
    """Print the ratios and write ``benchmarks/results/NAME.json``."""
    for ratio, value in ratios.items():
        print(f"{name}: {ratio} = {value:.4f}")
    write_json(
        RESULTS / f"{name}.json",
        {"ratios": ratios, "configuration": config, "versions": versions(), "device": device_name()},
    )
