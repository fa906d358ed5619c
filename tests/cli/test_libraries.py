"""How the libraries are set up before a command: their waiting threads sleep, unless the user chose otherwise."""

from __future__ import annotations

import os

import pytest

from stabledllm.cli.libraries import quiet_libraries


@pytest.mark.parametrize(("chosen", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_chose(monkeypatch, chosen, used):
    for name in ("TQDM_MININTERVAL", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    quiet_libraries()
    assert os.environ["OMP_WAIT_POLICY"] == used
