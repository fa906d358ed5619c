"""The life of a process that was forked from this one: with its imports done, it works after tenths of a second."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def live(work: Callable[[], object], stdin: int, stdout: int, stderr: int) -> NoReturn:
    """Do the work with these file descriptors, and end the process; it never returns into its parent's code."""
    code = 70
    try:
        for number, stream in enumerate((stdin, stdout, stderr)):
            os.dup2(stream, number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _make_threads_anew()
        os.register_at_fork(after_in_child=_make_threads_anew)  # of the processes that it forks in its turn, too
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def _make_threads_anew() -> None:
    """torch does so at its first use after a fork, and fails where several threads are the first at once, as when
    weights are loaded."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())


def command_line(*arguments: str) -> None:
    """``stabledllm ARGUMENTS`` in this process."""
    from stabledllm.cli.main import main

    sys.argv = ["stabledllm", *arguments]
    main()
