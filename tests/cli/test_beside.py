"""Work beside a command: its printing arrives whole, its refusal as one, and it does not outlive its parent."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from stabledllm.cli.beside import beside
from stabledllm.errors import UserError


def work(name: str) -> None:
    print(f"{name} on {torch.get_num_threads()} thread")
    if name == "bad":
        raise UserError("data: expected something else, found bad.")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.processes
def test_what_it_printed_and_how_it_ended(capsys, monkeypatch):
    with beside(work, "good", threads=1) as good:
        assert good.printed() == "good on 1 thread\n"
    monkeypatch.setattr("stabledllm.cli.beside.START", "fork")  # the others need not load torch again
    with beside(work, "bad", threads=1) as bad, pytest.raises(UserError, match="expected something else, found bad"):
        bad.printed()
    with beside(work, "killed", threads=1) as killed, pytest.raises(UserError, match="found that it was ended"):
        killed.printed()
    assert not capsys.readouterr().out, "nothing is printed where it was not asked for"
