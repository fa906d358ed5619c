"""Training beside other work: OpenMP threads that spin while they wait against threads that sleep.

    python benchmarks/busy.py

The same short run of the command line, alone on the machine and beside one busy process a core, with OMP_WAIT_POLICY
unset (libgomp then spins), ACTIVE and PASSIVE (the command line's own choice). Baseline: unset. Every task is timed
three times, in turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

from common import save

RUN = "import torch; from stabledllm.cli.train import train; train('sft-synthetic', {overrides!r})"
SIZES = [
    "steps=15", "eval_every=15", "save_every=15", "data.train_rows=300", "data.validation_rows=8", "data.test_rows=4",
    "decoding.steps=5",
]  # fmt: skip
POLICIES = {"unset": None, "ACTIVE": "ACTIVE", "PASSIVE": "PASSIVE"}
REPEATS = 3


def seconds(policy: str | None, folder: str) -> float:
    """Seconds of one run, from start to end of its process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    env |= {"HF_HUB_OFFLINE": "1"} | ({"OMP_WAIT_POLICY": policy} if policy else {})
    code = RUN.format(overrides=[*SIZES, f"out={folder}"])
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    return time.perf_counter() - started


@contextmanager
def other_work(processes: int):
    """Processes that keep a core busy each."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    ratios, every = {}, {}
    for place, processes in (("alone", 0), ("beside other work", os.cpu_count() or 1)):
        times: dict[str, list[float]] = {name: [] for name in POLICIES}
        with other_work(processes):
            for _ in range(REPEATS):
                for name, policy in POLICIES.items():
                    with tempfile.TemporaryDirectory() as folder:
                        times[name].append(seconds(policy, f"{folder}/run"))
        unset = statistics.median(times["unset"])
        print(f"{place}: unset takes {unset:.1f} s")
        ratios |= {
            f"{place}, {name} over unset": statistics.median(times[name]) / unset
            for name in POLICIES
            if name != "unset"
        }
        every[place] = times
    save("busy", ratios, seconds=every, cores=os.cpu_count())


if __name__ == "__main__":
    main()
