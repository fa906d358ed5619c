"""``make faults``: a fault at every event of every command; what goes wrong is printed, and a table at the end."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

from tests.faults import mutated
from tests.faults.cases import CASES, Case
from tests.faults.disturbing import KINDS, SIZES, by_name, disturbed_at, disturbed_by_size, undisturbed
from tests.faults.forked import warm

Work = tuple[str, Callable[[], str]]
"""A fault's name, and what brings it about and says what is wrong then."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("commands", nargs="*", help="of them all by default; 'mutated[:NAME]': damaged files")
    parser.add_argument("--kinds", default=",".join((*KINDS, "size")), help="of faults, separated by commas")
    parser.add_argument("--every", type=int, default=1, help="only each such event")
    parser.add_argument("--sample", type=int, help="one fault of each command, another for each number")
    chosen = parser.parse_args()
    warm()
    table = []
    for place, name in enumerate(chosen.commands or [*(case.name for case in CASES), "mutated"]):
        if name.startswith("mutated"):
            work = mutated.work((name.partition(":")[2],))[:: chosen.every]
        else:
            work = _work(by_name(name), chosen.kinds.split(","), chosen.every)
        if chosen.sample is not None:
            count = 12 if name == "mutated" else 1
            work = [work[(chosen.sample + 7 * place + i) * 1009 % len(work)] for i in range(count)]
        table.append((name, len(work), _wrong(name, work)))
    print(f"{'command':12s} {'faults':>7s} {'wrong':>6s}")
    for name, faults, wrong in table:
        print(f"{name:12s} {faults:7d} {wrong:6d}")
    return int(any(wrong for _, _, wrong in table))


def _wrong(name: str, work: list[Work]) -> int:
    """How many faults end in something else than they should."""
    wrong, started = 0, time.monotonic()
    for number, (what, disturb) in enumerate(work, 1):
        if found := disturb():
            wrong += 1
            print(f"{name}, {what}: {found}", flush=True)
        if number % 20 == 0:
            print(f"{name}: {number} of {len(work)}, {time.monotonic() - started:.0f} s", flush=True)
    return wrong


def _work(case: Case, kinds: list[str], every: int) -> list[Work]:
    """Every fault of a command."""
    events = range(1, undisturbed(case)[1] + 1, every)
    found = [
        (f"{kind} at event {event} of {events.stop - 1}", partial(disturbed_at, case, kind, event))
        for kind in KINDS
        if kind in kinds
        for event in events
    ]
    if "size" in kinds:
        found += [
            (f"{what} beyond {size} bytes", partial(disturbed_by_size, case, size, kill=what == "kill"))
            for size in SIZES
            for what in ("kill", "full")
        ]
    return found


if __name__ == "__main__":
    sys.exit(main())
