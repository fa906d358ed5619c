"""What ``stabledllm train`` prints: in a file plain text, in a terminal colours and bars, and never beyond its width.

In this process, since a pipe that is read as text would turn the carriage returns of a bar into line breaks.
"""

from __future__ import annotations

import io
import re
import sys

import pytest
import yaml
from transformers.utils import logging

from stabledllm.cli.main import main
from tests.fakes.run import merged, small_run

LOGGED = {"log_every": 1, "eval_every": 2, "method": "ppots", "ppots": {"rows": 4, "rates": 4, "masks": 2, "starts": 1}}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Runs the command and returns what went to standard output and to standard error."""
    logging.disable_progress_bar()  # as `quiet_libraries` does in a process of its own, before transformers is imported

    def train(terminal: bool, columns: int = 80, **change) -> tuple[str, str]:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(merged(small_run(tmp_path) | LOGGED, change)))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
        streams = io.StringIO(), io.StringIO()
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            stream.isatty = lambda: terminal
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, "argv", ["stabledllm", "train", "recipe.yaml"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0, streams[1].getvalue()
        return streams[0].getvalue(), streams[1].getvalue()

    yield train
    logging.enable_progress_bar()


def test_what_goes_into_a_file_has_no_control_characters(trained):
    out, err = trained(terminal=False)
    assert {c for c in out + err if ord(c) < 32 or ord(c) == 127} == {"\n"}
    assert "<user>0+0=?<assistant>" in out
    assert "saved checkpoint-4" in out
    assert "about" not in out, "a run of seconds tells no time"


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_has_colours_bars_and_no_line_beyond_its_width(trained, columns):
    out, err = trained(terminal=True, columns=columns)
    assert "\x1b[" in out, "colours"
    for name in ("ppots, seed 42", "validation NLL", "probe ppots"):
        assert re.search(rf"\r{name}: +\d+%", err), name
    block, _, log = re.sub(r"\x1b\[[\d;]*m", "", out).partition("folder")
    assert max(map(len, block.splitlines())) <= columns
    told = [line for line in log.splitlines() if re.match(r" +\d+ ", line)]
    assert len(told) == 4 + 2 + 2
    assert max(map(len, told)) <= 80
