"""``make faults``: a fault at every event of every command; what goes wrong is printed, and a table at the end."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from tests.faults.cases import CASES, Case
from tests.faults.disturbing import KINDS, SIZES, by_name, disturbed_at, disturbed_by_size, undisturbed
from tests.faults.forked import warm


def _work(case: Case, events: int, kinds: list[str], every: int) -> list[tuple[str, Callable[[], str]]]:
    """Every fault's name, and what brings it about."""
    found = [
        (f"{kind} at event {event}", partial(disturbed_at, case, kind, event))
        for kind in KINDS
        if kind in kinds
        for event in range(1, events + 1, every)
    ]
    if "size" in kinds:
        found += [
            (f"{what} beyond {size} bytes", partial(disturbed_by_size, case, size, kill=what == "kill"))
            for size in SIZES
            for what in ("kill", "full")
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("commands", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--kinds", default=",".join((*KINDS, "size")), help="of faults, separated by commas")
    parser.add_argument("--every", type=int, default=1, help="only each such event")
    chosen = parser.parse_args()
    warm()
    table: dict[str, Counter] = {}
    for name in chosen.commands:
        case, counts = by_name(name), table.setdefault(name, Counter())
        events, started = undisturbed(case)[1], time.monotonic()
        print(f"{name}: {events} events", flush=True)
        work = _work(case, events, chosen.kinds.split(","), chosen.every)
        for number, (what, disturb) in enumerate(work, 1):
            wrong = disturb()
            counts["faults"] += 1
            if wrong:
                counts["wrong"] += 1
                print(f"{name}, {what}: {wrong}", flush=True)
            if number % 20 == 0:
                print(f"{name}: {number} of {len(work)}, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{'command':12s} {'faults':>7s} {'wrong':>6s}")
    for name, counts in table.items():
        print(f"{name:12s} {counts['faults']:7d} {counts['wrong']:6d}")
    return int(any(counts["wrong"] for counts in table.values()))


if __name__ == "__main__":
    sys.exit(main())
