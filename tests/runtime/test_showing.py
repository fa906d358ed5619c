"""Long work is seen, short work is not, and no control character reaches a file."""

from __future__ import annotations

import io
import os
import re
import sys
import time

import pytest

from stabledllm.runtime import showing
from stabledllm.runtime.showing import bar, busy, without_bars


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def watched(monkeypatch):
    """Puts a stream in the place of standard error, where work counts as long at once; called within the test, since
    pytest sets its own stream before."""

    def watch(terminal: bool = False) -> io.StringIO:
        stream = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    monkeypatch.setattr(showing, "SILENT_FOR", 0.02)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    return watch


def test_short_work_is_not_told(watched, monkeypatch):
    told = watched()
    monkeypatch.setattr(showing, "SILENT_FOR", 60)
    with busy("loading"), bar(3, "rows", "row") as shown:
        for _ in range(3):
            shown.update()
    assert told.getvalue() == ""


def test_long_work_is_told_in_one_line(watched):
    told = watched()
    with busy("loading the model 'x'"):
        with busy("loading its base"):
            time.sleep(0.06)
        time.sleep(0.06)
    assert told.getvalue() == "loading the model 'x' ...\n"


def test_a_count_is_told_with_what_is_left(watched, monkeypatch):
    told = watched()
    monkeypatch.setattr(showing, "EVERY", 0.02)
    with bar(4000, "validation NLL", "forward") as shown:
        for _ in range(4):
            time.sleep(0.03)
            shown.update(1000)
    lines = told.getvalue().splitlines()
    assert len(lines) == 3, "the last one would say what the result says"
    assert re.fullmatch(r"validation NLL: 1,000 of 4,000 forwards, about 1 s left", lines[0])
    assert not set("\r\x1b\b") & set(told.getvalue())


def test_a_terminal_has_a_bar_that_reaches_its_total_and_goes(watched):
    terminal = watched(terminal=True)
    with bar(8, "validation NLL", "forward") as shown:
        for _ in range(8):
            shown.update()
    assert "8/8" in terminal.getvalue(), "the last count too, however soon it came"
    assert terminal.getvalue().endswith("\r"), "the bar was taken away"


def test_a_terminal_shows_the_seconds_of_long_work_and_takes_them_away(watched):
    terminal = watched(terminal=True)
    with busy("saving"):
        time.sleep(0.1)
    assert "saving ... 0 s" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_a_bar_takes_the_place_of_what_surrounds_it(watched):
    told = watched()
    with busy("reading"), bar(None, "tokenise", "row"):
        time.sleep(0.06)
    assert told.getvalue() == ""


def test_a_bar_stands_in_the_line_of_what_it_takes_the_place_of(watched):
    terminal = watched(terminal=True)
    with busy("reading"):
        time.sleep(0.1)
        assert "reading ... " in terminal.getvalue()
        with bar(3, "tokenise", "row") as shown:
            assert shown.pos == 0, "what was shown before is gone"
            shown.update(3)
    assert "\n" not in terminal.getvalue()


@pytest.mark.parametrize("way", ["hidden", "TQDM_DISABLE", "RANK"])
@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_not_wanted_is_not_shown(watched, way, terminal, monkeypatch):
    stream = watched(terminal)
    if way != "hidden":
        monkeypatch.setenv(way, "1")

    def work():
        with busy("loading"):
            time.sleep(0.05)
        with bar(2, "rows", "row") as shown:
            shown.update(2)

    if way == "hidden":
        with without_bars():
            work()
    else:
        work()
    assert stream.getvalue() == ""


def test_an_error_within_ends_what_is_shown(watched):
    told = watched()
    with pytest.raises(ZeroDivisionError), busy("loading"):
        1 / 0  # noqa: B018
    with busy("again"):
        time.sleep(0.06)
    assert told.getvalue() == "again ...\n", "the first one left nothing behind"


@pytest.mark.parametrize("size", [(0, 0), (80, 0), (50, 20)], ids=str)
def test_a_terminal_that_does_not_know_its_size_has_a_bar_too(watched, monkeypatch, size):
    terminal = watched(terminal=True)
    terminal.fileno = lambda: 2
    monkeypatch.setattr(showing.os, "get_terminal_size", lambda *_: os.terminal_size(size))
    monkeypatch.setenv("COLUMNS", "60")
    with bar(8, "validation NLL", "forward") as shown:
        assert "validation NLL:   0%" in terminal.getvalue()
        assert bool(shown.dynamic_ncols) == all(size), "one that knows it is asked again and again"
        if not all(size):
            assert 50 < max(map(len, terminal.getvalue().split("\r"))) < 60


def test_a_notebook_is_told_by_its_stream_and_not_by_what_is_imported(monkeypatch):
    """Tests of notebooks import ipykernel too, and are none."""
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    assert showing.in_terminal()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not showing.in_terminal()
