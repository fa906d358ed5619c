"""One process where the launcher was asked for several is refused: it would train everything, as if alone."""

from __future__ import annotations

import psutil
import pytest

from stabledllm.errors import UserError
from stabledllm.runtime.lone_process import asked_of_launcher, refuse_lone_process

ACCELERATE = ["/venv/bin/python", "/venv/bin/accelerate", "launch"]
MODULE = ["-m", "accelerate.commands.launch"]


@pytest.fixture
def launched(monkeypatch):
    def by(words: list[str], **environment: str) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(psutil.Process, "cmdline", lambda _: words)

    return by


@pytest.mark.parametrize(
    "words",
    [
        [*ACCELERATE, "--num_processes", "2", "--cpu", "-m", "stabledllm"],
        [*ACCELERATE, "--cpu", "--num-processes=2", "-m", "stabledllm"],
        ["python", *MODULE, "--num_processes=2", "script.py", "--num_processes=1"],
    ],
)
def test_one_of_two_is_refused(launched, words):
    launched(words)
    assert asked_of_launcher() == 2
    with pytest.raises(UserError, match="expected 2 processes, as --num_processes asks, found one"):
        refuse_lone_process()


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        ([*ACCELERATE, "--num_processes", "1", "-m", "stabledllm"], {}),
        ([*ACCELERATE, "-m", "stabledllm"], {}),
        ([*ACCELERATE, "--num_processes", "2", "-m", "stabledllm"], {"WORLD_SIZE": "2"}),
        (["bash", "run.sh", "--num_processes", "2"], {}),
        ([], {}),
    ],
)
def test_what_is_as_it_was_asked_is_taken(launched, words, environment):
    launched(words, **environment)
    refuse_lone_process()


def test_a_launcher_that_is_gone_asked_for_nothing(launched, monkeypatch):
    launched([])
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: (_ for _ in ()).throw(psutil.NoSuchProcess(1)))
    refuse_lone_process()
