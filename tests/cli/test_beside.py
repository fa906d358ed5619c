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
    with beside(threads=1) as other:
        first, second = other.start(work, "good"), other.start(work, "better")
        assert first.printed() == "good on 1 thread\n"
        assert second.printed() == "better on 1 thread\n"
    monkeypatch.setattr("stabledllm.cli.beside.START", "fork")  # the others need not load torch again
    with beside(threads=1) as other:
        bad, after = other.start(work, "bad"), other.start(work, "good")
        with pytest.raises(UserError, match="expected something else, found bad"):
            bad.printed()
        assert after.printed() == "good on 1 thread\n", "one refusal ends no other work"
    with beside(threads=1) as other, pytest.raises(UserError, match="found that it was ended"):
        other.start(work, "killed").printed()
    assert not capsys.readouterr().out, "nothing is printed where it was not asked for"
