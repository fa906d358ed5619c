"""What is printed never loses work: no stream, whatever it cannot show or take, ends a command."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from stabledllm.cli import printing
from stabledllm.runtime.saying import SafeStream, lost_output, safe_streams, say
from tests.cli.runner import ROOT

ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
EVERYTHING = "NLL 1.5 ± 0.1 nats², 2×, 問 \ud800\n"


def encoded(name: str) -> tuple[io.BytesIO, io.TextIOWrapper]:
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding=name)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8", "cp1252"])
def test_every_encoding_shows_what_it_can_and_spells_out_the_rest(encoding):
    raw, stream = encoded(encoding)
    safe = SafeStream(stream)
    safe.write(EVERYTHING)
    safe.flush()
    assert safe.failure is None
    shown = raw.getvalue().decode(encoding)
    assert shown.startswith("NLL 1.5 ± 0.1" if encoding != "ascii" else "NLL 1.5 +/- 0.1 nats^2, 2x")
    assert shown.endswith("\\ud800\n")


class Failing(io.StringIO):
    """A stream whose reader or disk is gone from the n-th writing on."""

    def __init__(self, error: Exception, after: int = 0):
        super().__init__()
        self.error, self.left = error, after

    def write(self, text: str) -> int:
        if self.left <= 0:
            raise self.error
        self.left -= 1
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space"), ValueError("closed")])
def test_a_stream_that_fails_is_done_without(error, monkeypatch):
    stream = Failing(error, after=1)
    monkeypatch.setattr(sys, "stdout", stream)
    with safe_streams():
        for line in ("one", "two", "three"):
            printing.say(line)
        lost = lost_output()
    assert stream.getvalue().startswith("one")
    assert "three" not in stream.getvalue()
    assert (lost is None) == isinstance(error, BrokenPipeError), "a reader that went away has what it wanted"
    assert sys.stdout is stream


def test_a_mistake_is_not_taken_for_a_failing_stream():
    with pytest.raises(TypeError):
        SafeStream(io.StringIO()).write(b"bytes")


def test_lines_of_the_library_are_safe_too(monkeypatch):
    raw, stream = encoded("ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("± 1")
    assert raw.getvalue() == b"+/- 1\n"
    monkeypatch.setattr(sys, "stdout", Failing(OSError(28, "No space")))
    say("± 1")


class Terminal(io.StringIO):
    """A stream of a terminal."""

    def isatty(self) -> bool:
        return True


def test_sentences_fit_a_terminal_and_are_broken_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    sentence = "read 60 rows as prompt-completion from mine.jsonl; a mean of 0.49 ± 0.02 nats/token"
    lines = printing.fitting(sentence, Terminal()).split("\n")
    assert " ".join(lines) == sentence
    assert len(lines) == 2
    assert max(map(len, lines)) <= 60
    assert printing.fitting(sentence, io.StringIO()) == sentence, "a file's lines stay whole"


def test_points_of_a_list_hang_and_columns_stay(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    told = "stabledllm: 2 mistakes:\n  1. a sentence that is longer than the terminal is wide.\n  2. a short one."
    assert printing.fitting(told, Terminal()).split("\n") == [
        "stabledllm: 2 mistakes:",
        "  1. a sentence that is longer than the",
        "     terminal is wide.",
        "  2. a short one.",
    ]
    row = "method    0.49    a row of a table that is wider than it"
    assert printing.fitting(row, Terminal()) == row


def test_a_closed_stream_is_no_terminal():
    stream = Terminal()
    stream.close()
    stream.isatty = io.StringIO.isatty.__get__(stream)
    assert printing.fitting("line", stream) == "line"


def _shell(line: str, **environment: str) -> subprocess.CompletedProcess:
    command = line.replace("stabledllm", f"{sys.executable} -m stabledllm")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=ENV | environment, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("stabledllm ls | head -n 1", 0),
        ("stabledllm ls >&- 2>&-", 0),
        ("stabledllm ls > /dev/full", 2),
        ("stabledllm --help > /dev/full", 2),
        ("stabledllm validate nowhere 2> /dev/full", 2),
    ],
)
def test_pipes_and_disks_of_a_real_process(line, code):
    ended = _shell(line, PYTHONIOENCODING="ascii")
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
