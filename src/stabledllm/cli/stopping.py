"""Interrupted commands: signals become an exception, and a sentence says how to continue."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stabledllm.runtime.secrets import without_secrets

_ASKING = ("SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """Raised when a signal asks this process to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """While this context is open, a signal that would end the process raises :class:`Stopped` instead."""
    before = {}
    for name in _ASKING:
        number = getattr(signal, name, None)
        try:
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores one of them
                before[number] = signal.signal(number, _stop)
        except ValueError:  # not in the main thread, where no signal arrives
            break
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: object) -> None:
    raise Stopped(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code that shells expect: 128 plus the signal's number."""
    return 128 + getattr(error, "number", signal.SIGINT)


def how_to_continue(out: Path | None) -> str:
    """The sentence on what an interrupted command left in its folder and which command continues it."""
    work = work_in(out) if out is not None else ""
    again = "launch the same again" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "run the same command again"
    kept = "is kept" if work.startswith(("1 ", "step ")) and " and " not in work else "are kept"
    state = f"{work} {kept} in {out}; {again} to continue" if work else f"nothing is kept; {again} to start anew"
    return f"interrupted; {state}: {command()}"


def command() -> str:
    """This process's command line, ready to be pasted, with secrets hidden."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        program = ["python", "-m", "stabledllm"]
    else:
        program = [name if shutil.which(name) or not name.startswith("stabledllm") else sys.argv[0]]
    return shlex.join([*program, *map(without_secrets, sys.argv[1:])])


def work_in(out: Path) -> str:
    """The work in a command's folder that will not be repeated, in words; empty where there is none."""
    parts = [
        *_counted(len(list(out.glob("**/run.json"))), "finished run"),
        *_counted(len(list(out.glob("**/trained.json"))), "trained model"),
        *_last_checkpoint(out),
        *_counted(sum(_lines(path) - 1 for path in out.glob("**/*journal/*.jsonl")), "evaluated row"),
        *_counted(len([path for name in _RESULTS for path in out.glob(f"**/{name}")]), "result file"),
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


_RESULTS = (
    "decomposition.json", "preference_noise.json", "policy_noise.json", "p_of_t.json", "p_of_t_*.json", "untuned.json",
    "eval.json",
)  # fmt: skip


def _last_checkpoint(out: Path) -> list[str]:
    stamps = out.glob("**/checkpoint-*/stabledllm.json")
    stamped = [stamp.parent for stamp in stamps if not (stamp.parents[1] / "run.json").exists()]
    if len({folder.parent for folder in stamped}) > 1:
        return _counted(len({folder.parent for folder in stamped}), "begun run")
    steps = [int(step) for folder in stamped if (step := folder.name.partition("-")[2]).isdigit()]
    return [f"step {max(steps)}"] if steps else []


def _counted(number: int, what: str) -> list[str]:
    return [f"{number} {what}{'s' if number > 1 else ''}"] if number > 0 else []


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 1
