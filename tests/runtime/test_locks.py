"""One command at a time writes to an output, which is checked before the work."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stabledllm.cli.new_folders import free_folder, new_folder
from stabledllm.data import sources
from stabledllm.errors import UserError
from stabledllm.models import loading
from stabledllm.runtime import locks
from stabledllm.runtime.folders import temporary_beside, whole_folder, writable_folder
from stabledllm.runtime.locks import CLAIM, LOCK, waiting_for, writing, writing_beside
from tests.cli.runner import assert_refused
from tests.cli.runner import in_process as call

FORK = multiprocessing.get_context("fork")
SMALL = ("data.train_rows=8", "data.validation_rows=2", "data.test_rows=2", "batch=2", "steps=2")
COMMANDS = {
    "train": ("train", "sft-synthetic", "out={}", *SMALL),
    "eval": ("eval", "--rows", "2", "--out", "{}"),
    "decompose": ("decompose", "--out", "{}"),
    "recommend": ("recommend", "--out", "{}"),
    "fit": ("fit", "--out", "{}"),
    "quickstart": ("quickstart", "--small", "--out", "{}"),
    "quickstart-images": ("quickstart-images", "--small", "--out", "{}"),
}
BESIDE = {
    "merge": ("merge", "adapter", "--out", "{}"),
    "generate": ("generate", "--image", "a red circle", "--out", "{}"),
    "rescore": ("rescore", "rows.jsonl", "--task", "synthetic", "--out", "{}"),
    "cp": ("cp", "quickstart", "{}"),
    "average": ("average", "run", "--power", "0.1", "--out", "{}"),
}


def _inputs(folder: Path) -> None:
    """What ``merge``, ``rescore`` and ``average`` read, as far as it is looked at before the work."""
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny", "peft_type": "LORA"}')
    (folder / "run" / "model").mkdir(parents=True)
    (folder / "run" / "model" / "stabledllm.json").write_text("{}")
    snapshot = folder / "run" / "averages" / "step-2"
    snapshot.mkdir(parents=True)
    facts = {"stabledllm": json.dumps({"average": "power-0.1", "counted": 2})}
    save_file({"weight": torch.ones(1)}, snapshot / "power-0.1.safetensors", metadata=facts)
    (folder / "rows.jsonl").write_text('{"completion": "2", "gold": "2"}\n')


def _hold(held, path: Path, ready) -> None:
    with held(path, "train"):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder():
    """Another process that writes to a path; ``stop`` kills it."""
    started = []

    def start(held, path: Path):
        ready = FORK.Event()
        process = FORK.Process(target=_hold, args=(held, path, ready))
        process.start()
        started.append(process)
        assert ready.wait(30)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.mark.processes
@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_command_on_a_folder_is_told_who_is_at_it(tmp_path, holder, name):
    other = holder(writing, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    ended = call(*(each.format("out") for each in COMMANDS[name]), cwd=tmp_path)
    assert_refused(ended, "out: expected", "'train' at it", f"process {other.pid} on {socket.gethostname()}, since 20")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


@pytest.mark.processes
@pytest.mark.parametrize("name", BESIDE)
def test_a_second_command_on_a_file_or_new_folder_is_refused(tmp_path, holder, name):
    holder(writing_beside, tmp_path / "out")
    _inputs(tmp_path)
    ended = call(*(each.format("out") for each in BESIDE[name]), cwd=tmp_path)
    assert_refused(ended, "out: expected an output that no other command is writing, found 'train' at it")
    assert not (tmp_path / "out").exists()


@pytest.mark.processes
def test_a_killed_holder_lets_go(tmp_path, holder):
    other = holder(writing, tmp_path / "out")
    with pytest.raises(UserError, match="no other command"), writing(tmp_path / "out", "eval"):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with writing(tmp_path / "out", "eval"):
        assert json.loads((tmp_path / "out" / CLAIM).read_text())["command"] == "eval"
    assert not (tmp_path / "out" / CLAIM).exists()


def test_a_command_within_a_command_writes_under_the_same_lock(tmp_path):
    with writing(tmp_path / "out", "experiment"), writing(tmp_path / "." / "out", "train"):
        pass
    with writing(tmp_path / "out", "train"):  # and it is free again
        pass


@pytest.mark.processes
def test_of_several_ranks_the_first_one_locks_for_all(tmp_path, holder, monkeypatch):
    holder(writing, tmp_path / "out")
    monkeypatch.setenv("RANK", "1")
    with writing(tmp_path / "out", "train"):
        pass
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError), writing(tmp_path / "out", "train"):
        pass


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path):
    with pytest.raises(UserError), writing(tmp_path / "a" / "b", "train"):
        raise UserError("data: expected rows, found none.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_a_sentence(tmp_path, monkeypatch, code):
    fcntl = pytest.importorskip("fcntl")

    def lockless(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", lockless)
    with pytest.raises(UserError, match="expected a file system with locks"), writing(tmp_path / "out", "train"):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.processes
def test_who_waits_goes_on_when_the_other_one_is_done(tmp_path, holder):
    def hold(path, _):
        return waiting_for(path)

    other, said = holder(hold, tmp_path / "setup.lock"), []
    timer = FORK.Process(target=lambda: (time.sleep(0.3), os.kill(other.pid, signal.SIGKILL)))
    timer.start()
    with waiting_for(tmp_path / "setup.lock", said.append):
        assert "waiting for another process" in said[0]
    timer.join()


def _long(tmp_path: Path) -> str:
    return "x" * 300


def _loop(tmp_path: Path) -> str:
    (tmp_path / "loop").symlink_to("loop")
    return "loop"


def _file(tmp_path: Path) -> str:
    (tmp_path / "file").write_text("content")
    return "file"


def _below_a_file(tmp_path: Path) -> str:
    return f"{_file(tmp_path)}/out"


def _nowhere(tmp_path: Path) -> str:
    (tmp_path / "dangling").symlink_to("nowhere")
    return "dangling"


def _forbid_work(monkeypatch) -> None:
    """Loading a model or data fails the test, under every name that a module has for it.

    The modules are imported first: one that is imported later would keep the replacement for the tests that follow.
    """
    for module in ("build", "data.bundle", "evaluation.run", "lab.decompose", "training.finishing"):
        import_module(f"stabledllm.{module}")
    for work in (loading.load_model, sources.load_examples):
        for name, module in list(sys.modules.items()):
            if name.startswith("stabledllm") and getattr(module, work.__name__, None) is work:
                monkeypatch.setattr(module, work.__name__, lambda *_, **__: pytest.fail("worked before the check"))


@pytest.mark.parametrize("place", [_long, _loop, _file, _below_a_file, _nowhere])
@pytest.mark.parametrize("name", [*COMMANDS, *BESIDE, "experiment"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, place, name):
    _forbid_work(monkeypatch)
    _inputs(tmp_path)
    out, arguments = place(tmp_path), COMMANDS | BESIDE | {"experiment": ("experiment", "quickstart", "out={}")}
    if (name in ("rescore", "cp") and place is _file) or (place is _nowhere and name in BESIDE):
        pytest.skip("a file may be there, or come to be")
    before = sorted(tmp_path.rglob("*"))
    ended = call(*(each.format(out) for each in arguments[name]), cwd=tmp_path)
    assert_refused(ended, out[:40], "expected")
    assert sorted(tmp_path.rglob("*")) == before
    assert place is not _file or (tmp_path / "file").read_text() == "content"


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a.b: expected room on the disk, found none"):
        writable_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_only_what_dead_processes_left_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = temporary_beside(tmp_path / "run.json").name
    old = mine.replace(socket.gethostname(), "elsewhere")
    names = {
        mine.replace(f".{os.getpid()}.", f".{dead.pid}."): False,
        mine.replace(f".{os.getpid()}.", f".{os.getppid()}."): True,
        old: True,
        f"{old[:-4]}0.tmp": False,
        ".notes.tmp": True,
        "run.json": True,
        ".run.json.12.tmp.bak": True,
    }
    for name in names:
        (tmp_path / name).write_text("")
    os.utime(tmp_path / f"{old[:-4]}0.tmp", (0, 0))
    with writing(tmp_path, "train"):
        left = {path.name for path in tmp_path.iterdir()} - {LOCK, CLAIM}
    assert left == {name for name, kept in names.items() if kept}


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"), new_folder(tmp_path / "out", "merge") as (folder, _):
        raise full if (folder / "config.json").write_text("{}") else AssertionError
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out", "merge") as (folder, _):
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="there already"), new_folder(tmp_path / "out", "merge"):
        pass


def test_what_is_saved_again_replaces_file_by_file(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "model") as folder:
            (folder / "config.json").write_text(text)
    (tmp_path / "model" / "notes.txt").write_text("kept")
    with whole_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("newest")
    assert (tmp_path / "model" / "config.json").read_text() == "newest"
    assert (tmp_path / "model" / "notes.txt").read_text() == "kept"


@pytest.mark.processes
def test_folders_by_number_are_not_taken_twice(tmp_path, holder):
    holder(writing_beside, tmp_path / "1")
    with free_folder(tmp_path, "generate") as (_, becomes):
        assert becomes == tmp_path / "2"


def test_the_claim_is_of_whoever_holds_the_lock(tmp_path):
    assert locks.claimant(tmp_path) is None
    (tmp_path / CLAIM).write_text("[" * 100_000)
    assert locks.claimant(tmp_path) is None
