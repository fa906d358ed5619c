"""How commands end: a sentence and a code for whatever the machine does, a traceback for a mistake of ours."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from safetensors import safe_open

from stabledllm.cli import stopping
from stabledllm.errors import UserError
from stabledllm.runtime.failures import sentence, working_on
from stabledllm.runtime.files import naming, read_json, reading, write_jsonl, write_text
from tests.cli.runner import ROOT, assert_refused
from tests.cli.runner import in_process as call


def raising(error: BaseException):
    def run(*_, **__):
        raise error

    return run


def ends_with(monkeypatch, tmp_path, error: BaseException):
    monkeypatch.setattr("stabledllm.experiment.at_once.load_checked", raising(error))
    return call("validate", "quickstart", cwd=tmp_path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/run.json"), ["runs/x/run.json", "room on the disk"]),
        (OSError(errno.EACCES, "Permission denied", "data.jsonl"), ["data.jsonl", "no permission"]),
        (OSError(errno.EROFS, "Read-only file system", "out"), ["out", "read-only"]),
        (OSError(errno.EACCES, "Permission denied", "a\x1b[31mb"), ["a\\x1b[31mb", "no permission"]),
        (OSError(errno.EPIPE, "Broken pipe"), ["Broken pipe"]),
        (OSError("the hub cannot be reached"), ["the hub cannot be reached"]),
        (UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "invalid"), ["UTF-8", "0xff at place 3"]),
        (json.JSONDecodeError("Expecting value", "", 0), ["expected JSON"]),
        (MemoryError(), ["memory"]),
        (torch.OutOfMemoryError("CUDA out of memory"), ["memory", "CUDA"]),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), ["torch.save"]),
        (EOFError(), ["a whole file"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_machine_does_is_a_sentence(monkeypatch, tmp_path, error, words):
    assert_refused(ends_with(monkeypatch, tmp_path, error), *words)


@pytest.mark.parametrize("error", [KeyError("rows"), RuntimeError("shapes differ"), AssertionError(), RecursionError()])
def test_a_mistake_of_ours_shows_its_traceback_and_asks_for_a_report(monkeypatch, tmp_path, error):
    ended = ends_with(monkeypatch, tmp_path, error)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "please report it" in ended.stderr.splitlines()[-1]


def test_an_error_may_have_a_code_of_its_own(monkeypatch, tmp_path):
    class Diverged(UserError):
        exit_code = 3

    assert ends_with(monkeypatch, tmp_path, Diverged("run: diverged.")).returncode == 3


def test_readers_name_the_file(tmp_path):
    path = tmp_path / "broken"
    path.write_bytes(b"\x80nothing")
    for read in (
        lambda: torch.load(path, weights_only=True),
        lambda: safe_open(path, "pt"),
        lambda: zipfile.ZipFile(path),
        lambda: pickle.loads(b""),
        lambda: path.read_text(encoding="utf-8"),
        lambda: (tmp_path / "nowhere").read_bytes(),
    ):
        with pytest.raises(UserError, match=r"broken|nowhere"), reading(path):
            read()
    with pytest.raises(ZeroDivisionError), reading(path):
        1 / 0  # noqa: B018


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'"text"'])
def test_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json: expected"):
        read_json(tmp_path / "run.json")


def test_half_a_character_is_written_as_its_escape(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"completion": "a\ud800b"}])
    assert json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8")) == {"completion": "a\ud800b"}


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as failed:
        write_text(tmp_path / "run.json", "text")
    assert sentence(failed.value).startswith(f"{tmp_path / 'run.json'}: expected room on the disk")
    assert list(tmp_path.iterdir()) == []


def test_naming_keeps_another_files_name(tmp_path):
    with pytest.raises(OSError, match="elsewhere"), naming(tmp_path / "mine"):
        raise OSError(errno.EACCES, "Permission denied", "elsewhere")


def test_interrupted_it_says_how_to_continue(monkeypatch, tmp_path):
    (tmp_path / "run" / "checkpoint-40").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-40" / "stabledllm.json").write_text("{}")

    def interrupt(settings, *_, **__):
        with working_on(settings.out):
            raise KeyboardInterrupt

    monkeypatch.setattr("stabledllm.training.run.train", interrupt)
    ended = call("train", "sft-synthetic", "out=run", "data.system_prompt=password=abc and more", cwd=tmp_path)
    assert ended.returncode == 130
    told = ended.stderr.splitlines()[-1]
    assert told.startswith("stabledllm: interrupted; step 40 is kept in run; run the same command again to continue: ")
    assert "train sft-synthetic out=run 'data.system_prompt=password=(hidden) and more'" in told


def test_what_is_kept_of_each_kind(tmp_path):
    assert stopping.work_in(tmp_path) == ""
    for name in ("runs/a/run.json", "runs/b/checkpoint-2/stabledllm.json", "runs/c/checkpoint-4/stabledllm.json"):
        write_text(tmp_path / name, "{}\n")
    write_text(tmp_path / "journal" / "completions-0.jsonl", "{}\n{}\n{}\n")
    assert stopping.work_in(tmp_path) == "1 finished run, 2 begun runs and 2 evaluated rows"
    assert "start anew: " in stopping.how_to_continue(None)


@pytest.mark.long
@pytest.mark.processes
def test_a_real_run_that_is_asked_to_end(tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    small = [
        "data.train_rows=8",
        "data.validation_rows=2",
        "data.test_rows=2",
        "batch=2",
        "save_every=1",
        "steps=100000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "stabledllm", "train", "sft-synthetic", "out=run", *small],
        cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(tmp_path.glob("run/checkpoint-*/stabledllm.json")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "Traceback" not in told
    last = told.strip().splitlines()[-1]
    assert "is kept in run; run the same command again to continue: " in last
    assert last.endswith("train sft-synthetic out=run " + " ".join(small))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_that_ask_a_process_to_end(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # which nohup, under which tests may run, ignores
    try:
        with pytest.raises(KeyboardInterrupt) as stopped, stopping.stoppable():
            signal.raise_signal(number)
        assert stopping.exit_code(stopped.value) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
