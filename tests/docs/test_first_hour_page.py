"""docs/first_hour.md: its quick commands, typed in order in one folder, print what the page shows."""

from __future__ import annotations

import io
import re
import shlex

import pytest

from stabledllm.cli.printing import fitting
from tests.cli.runner import ROOT
from tests.cli.runner import in_process as call

PAGE = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
SCREENS = re.findall(r"(?ms)^\$ stabledllm (.*?)\n(.*?)(?=^\$ |^```)", PAGE)
QUICK = [(command, screen) for command, screen in SCREENS if "--quick" not in command and "killed" not in command]
REFUSED = "model=tny"
"""In the one command that is refused."""
_OF_THE_MACHINE = re.compile(
    r"device |loading |about |generate: |[-—]{3}|\d+ runs? at a time|\S+, seed \d+: |note: |.* \.\.\.$"
)


def without_figures(command: str, text: str) -> list[str]:
    """The words of a screen, numbers as 0: they, and how wide the columns are, differ from machine to machine.

    So do the lines on what goes on side by side or takes more than a moment; of an experiment the first table is left.
    """
    if command.startswith("experiment"):
        text = text.partition("Validation NLL (nats per token)\n")[2].partition("p (Holm):")[0]
    lines = (line for line in text.splitlines() if not _OF_THE_MACHINE.match(line))
    return sorted(re.sub(r"[-+]?\d[\d,.]*(e[-+]?\d+)?", "0", " ".join(lines)).split())


class Terminal(io.StringIO):
    """A stream that lines are broken for."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's rows and its recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    (recipe,) = re.findall(r"```yaml\n(base:.*?)```", PAGE, re.DOTALL)
    (tmp_path / "compare.yaml").write_text(recipe)
    return tmp_path


def test_every_step_has_a_screen():
    assert [command.split()[0] for command, _ in SCREENS] == [
        "validate", "train", "train", "train", "train", "generate", "eval", "experiment", "report",
        "decompose", "recommend",
    ]  # fmt: skip
    assert all(screen.strip() for _, screen in SCREENS)


@pytest.mark.long
@pytest.mark.slow
def test_the_screens_are_what_is_printed(folder):
    for command, screen in QUICK:
        words = shlex.split(command) + ["--jobs", "1"] * command.startswith("experiment")
        done = call(*words, cwd=folder)
        assert done.returncode == 2 * (REFUSED in command), done.stderr[-3000:]
        shown = [line for line in done.stderr.split("\n") if "\r" not in line]
        printed = fitting(done.stdout + "\n".join(shown), Terminal())
        assert without_figures(command, printed) == without_figures(command, screen), command
