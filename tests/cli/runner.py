"""The command line as a user runs it: a process of its own."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def later_wins(arguments: Sequence[str]) -> list[str]:
    """The arguments without a KEY=VALUE whose key is typed again later, so that a test can vary a list of settings.

    The command line itself refuses a key that is typed twice. Of ``--set``, an option, the last counts anyway.
    """
    settings = [place for place, word in enumerate(arguments) if _is_setting(word) and arguments[place - 1] != "--set"]
    last = {arguments[place].partition("=")[0]: place for place in settings}
    dropped = {place for place in settings if last[arguments[place].partition("=")[0]] != place}
    return [word for place, word in enumerate(arguments) if place not in dropped]


def _is_setting(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and not word.startswith("-") and key.replace(".", "").replace("_", "").isalnum()


def stabledllm(*arguments: str, cwd: Path, timeout: float = 240, **kwargs) -> subprocess.CompletedProcess:
    """Run ``stabledllm ARGUMENTS`` in a folder; one thread, so that tests do not fight over cores."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-m", "stabledllm", *later_wins(arguments)],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False, **kwargs,
    )  # fmt: skip


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2 and one sentence on standard error, or a numbered list, that holds the words; no traceback."""
    assert result.returncode == 2, result.stderr[-2000:]
    lines = result.stderr.strip().splitlines()
    begun = max((i for i, line in enumerate(lines) if line.startswith("stabledllm: ")), default=None)
    assert begun is not None, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    told, *listed = lines[begun:]
    assert [line.split(". ")[0] for line in listed] == [f"  {i}" for i in range(1, len(listed) + 1)], lines[begun:]
    for word in words:
        assert word in "\n".join([told, *listed]), lines[begun:]


@functools.cache
def _keep_commands() -> None:
    """Typer makes every command anew from its signature in each call, longer than the rest of a short one takes."""
    from typer import main as typer_main

    typer_main.get_command = functools.cache(typer_main.get_command)


def in_process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """The same command line called in this process: seconds faster, for what needs no process of its own."""
    from stabledllm.cli.main import main

    _keep_commands()
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, Path.cwd())
    sys.argv = ["stabledllm", *later_wins(arguments)]
    os.chdir(cwd)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
