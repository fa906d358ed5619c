"""How a command ends: the sentence on standard error and the exit code.

0: done. 1: a mistake of this library. 2: bad input, a damaged file, or a machine that does not do as asked. 3: a run
that diverged (the error's ``exit_code``). 128 + N: ended by signal N, so 130 by Ctrl-C.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable

import typer

from stabledllm import __version__
from stabledllm.cli.extra import require_extra
from stabledllm.cli.printing import fitting
from stabledllm.cli.stopping import exit_code, how_to_continue, stoppable
from stabledllm.errors import Mistakes
from stabledllm.plain_text import plain_text
from stabledllm.runtime.failures import outputs_of, sentence
from stabledllm.runtime.launched import is_main_process
from stabledllm.runtime.saying import lost_output, safe_streams

_NAME = "stabledllm: "


class _Carried(Exception):
    """Carries an error through typer, which would replace some errors' messages with its own."""


def carried(command: Callable) -> Callable:
    """The command, wrapped so that its interrupts and system errors reach :func:`ended` as they were raised."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        require_extra()
        try:
            return command(*args, **kwargs)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise _Carried from error

    return run


def ended(app: typer.Typer) -> int:
    """Run the command line, print the sentence of an error, and return the exit code."""
    with safe_streams(), stoppable():
        code = _run(app)
        lost = lost_output()
        if lost and code == 0:
            _print_error(lost)
            code = 2
        return code


def _run(app: typer.Typer) -> int:
    try:
        app()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except _Carried as carrier:
        return _failed(carrier.__cause__)
    except BaseException as error:
        return _failed(error)
    return 0


def _failed(error: BaseException) -> int:
    outputs = outputs_of(error)
    if isinstance(error, KeyboardInterrupt):
        if is_main_process():
            _print_error(how_to_continue(outputs[-1] if outputs else None))
        return exit_code(error)
    message = sentence(error, outputs[0] if outputs else None)
    if message is not None:
        # An error of the system quotes file names as they are; several mistakes stand in lines of their own.
        told = plain_text(message, longest=None, keep="\n" if isinstance(error, Mistakes) else "")
        _print_error(fitting(f"{_NAME}{told}", sys.stderr).removeprefix(_NAME))
        return getattr(error, "exit_code", 2)
    traceback.print_exception(error)
    _print_error(
        f"this is a mistake of stabledllm {__version__}, not of its input; please report it with the lines above and "
        f"the command."
    )
    return 1


def _print_error(line: str) -> None:
    # Looked up, not imported: there is no bar without it, and it may be what is missing.
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(bars, "_instances", ())):  # else a bar would share the line of the sentence, or follow it
        bar.close()
    sys.stderr.write(f"{_NAME}{line}\n")
    sys.stderr.flush()
