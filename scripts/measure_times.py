"""Measure the times that the README names, on this machine, and write them into it.

    python scripts/measure_times.py            all of them: a quarter of an hour on two cores
    python scripts/measure_times.py test ls    some; the others stay as they were measured

They mean something on an idle machine only: the load before each is recorded beside it, and said where it is high. The
record is ``benchmarks/results/times.json``; the README's line is made from it, and a test holds the two together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "times.json"
README = ROOT / "README.md"
LINE = re.compile(r"(?m)^Measured on .* idle cores by `scripts/measure_times\.py`: .*$")
MADE = {
    "quickstart": ("make", "quickstart", "OUT={folder}/text"),
    "quickstart-small": ("make", "quickstart", "OUT={folder}/small", "QUICKSTART=--small"),
    "quickstart-images": ("make", "quickstart-images", "OUT_IMAGES={folder}/images"),
    "test": ("make", "test"),
    "test-long": ("make", "test-long"),
    "test-fast": ("make", "test-fast"),
}
"""What is run once."""
STARTED = {
    "help": ("--help",),
    "ls": ("ls",),
    "cp": ("cp", "quickstart", "{folder}/recipe.yaml"),
    "validate": ("validate", "quickstart", "base.steps=none"),
    "power": ("power", "--difference", "0.02", "--sd", "0.01"),
    "report": ("report", "{folder}/nothing"),
}
"""Commands that need no model, each with what it answers at once; the best of several starts counts."""
STARTS = 5
_BUSY = 0.5
"""A load of one a core is full; above this share of it the machine was not idle."""


def seconds(command: tuple[str, ...], expected: tuple[int, ...]) -> float:
    """Seconds of a command, from start to end of its process.

    Raises:
        SystemExit: it ended with another code.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        ended = subprocess.run(
            [word.replace("{folder}", folder) for word in command], cwd=ROOT, capture_output=True, text=True
        )
        taken = time.perf_counter() - started
    if ended.returncode not in expected:
        sys.exit(f"{' '.join(command)}: ended with {ended.returncode}\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return taken


def measured(name: str) -> dict:
    """The seconds of one entry, and the load of the machine before it."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > _BUSY:
        print(f"{name}: the machine is not idle (load {load:.1f} a core), so that this is too long", flush=True)
    if name in MADE:
        taken = seconds(MADE[name], (0,))
    else:
        command = (sys.executable, "-m", "stabledllm", *STARTED[name])
        taken = min(seconds(command, (0, 2)) for _ in range(STARTS))
    print(f"{name}: {taken:.2f} s", flush=True)
    return {"seconds": round(taken, 2), "load": round(load, 2)}


def spoken(taken: float) -> str:
    """Seconds as the README writes them, rounded up.

    >>> spoken(107.2), spoken(352), spoken(0.43)
    ('108 s', '5 min 52 s', '0.5 s')
    """
    if taken < 1:
        return f"{-(-taken * 10 // 1) / 10:.1f} s"
    whole = int(-(-taken // 1))
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"


def line(record: Mapping) -> str:
    """The README's line of a record."""
    taken = {name: entry["seconds"] for name, entry in record["times"].items()}
    shown = {
        "quickstart": "`make quickstart`",
        "quickstart-small": "`make quickstart QUICKSTART=--small`",
        "quickstart-images": "`make quickstart-images`",
        "test": "`make test`",
        "test-long": "`make test-long`",
        "test-fast": "`make test-fast`",
    }
    parts = [f"{what} {spoken(taken[name])}" for name, what in shown.items() if name in taken]
    if started := [name for name in STARTED if name in taken]:
        slowest = max(taken[name] for name in started)
        parts.append(f"{', '.join(f'`{STARTED[name][0]}`' for name in started)} answer within {spoken(slowest)}")
    return f"Measured on {record['cores']} idle cores by `scripts/measure_times.py`: {'; '.join(parts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join((*MADE, *STARTED))}; all by default")
    names = parser.parse_args().names or [*MADE, *STARTED]
    if unknown := [name for name in names if name not in MADE | STARTED]:
        parser.error(f"expected names of {', '.join((*MADE, *STARTED))}, found {', '.join(unknown)}")
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {"times": {}}
    record["cores"] = os.cpu_count()
    for name in names:
        record["times"][name] = measured(name)
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    if not LINE.search(text):
        sys.exit("README.md: expected a line 'Measured on ... by `scripts/measure_times.py`: ...', found none.")
    README.write_text(LINE.sub(lambda _: line(record), text), encoding="utf-8")
    print(line(record))


if __name__ == "__main__":
    main()
