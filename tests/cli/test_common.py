"""The options of every command, ``stabledllm env``, and how fast the command line answers."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from stabledllm.cli.common import apply_common
from stabledllm.cli.printing import answer, be_quiet, remark, say
from stabledllm.errors import UserError
from stabledllm.runtime import device
from tests.cli.runner import ROOT, assert_refused
from tests.cli.runner import in_process as call


@pytest.fixture(autouse=True)
def _loud(monkeypatch):
    """No test leaves its device or its quiet behind."""
    monkeypatch.setenv(device.ASKED, "cpu")
    monkeypatch.delenv(device.ASKED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    yield
    be_quiet(False)


def test_quiet_prints_results_alone(capsys):
    for quiet in (False, True):
        be_quiet(quiet)
        say("told")
        remark("noted")
        answer("the result")
        printed = capsys.readouterr()
        assert printed.out == ("the result\n" if quiet else "told\nthe result\n")
        assert printed.err == ("" if quiet else "noted\n")


def test_quiet_hides_bars_and_gives_them_back(monkeypatch):
    from stabledllm.runtime.saying import bars_are_off

    be_quiet()
    assert bars_are_off()
    be_quiet(False)
    assert not bars_are_off()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    be_quiet()
    be_quiet(False)
    assert bars_are_off(), "the user's own choice stays"


@pytest.mark.parametrize("spelling", [["--quiet"], ["--quiet", "steps=8"]])
def test_quiet_generate(tmp_path, spelling):
    loud = call("generate", "7+15-3=?", "--length", "8", "--steps", "8", cwd=tmp_path)
    quiet = call("generate", "7+15-3=?", "--length", "8", *(["--steps", "8"] if len(spelling) == 1 else []), *spelling,
                 cwd=tmp_path)  # fmt: skip
    assert quiet.returncode == 0, quiet.stderr
    assert quiet.stdout == loud.stdout
    assert "model calls" in loud.stderr
    assert "model calls" not in quiet.stderr


def test_quiet_train_and_eval_end_with_the_result(tmp_path):
    small = ["steps=1", "eval_every=null", "save_every=null", "batch=2", "eval_draws=1", "data.train_rows=8"]
    small += ["data.validation_rows=2", "data.test_rows=2", "decoding.steps=4", "decoding.length=4", "decoding.block=4"]
    trained = call("train", "sft-synthetic", *small, "--out", "out", "--quiet", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    names = [line.split()[0] for line in trained.stdout.splitlines()]
    assert names[0] == "validation_nll"
    assert names[-1] == "out"
    assert len(names) <= 8
    words = ["--model", "out/model", "--rows", "2", "draws=1", "--length", "4", "--steps", "4", "--beside", "none"]
    evaluated = call("eval", *words, "--quiet", "--out", "e", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.startswith("validation_nll ")
    assert evaluated.stdout.splitlines()[-1] == "e"


def test_device_cpu_keeps_runs_off_accelerators(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not device.on_cpu()
    assert apply_common("train", ["sft", "--device", "cpu"]) == ["sft"]
    assert device.asked() == "cpu"
    assert device.on_cpu()
    assert apply_common("train", ["--device=auto"]) == []
    assert device.asked() is None


def test_a_gpu_by_number_is_the_only_one_seen(monkeypatch):
    import os

    device.ask_for("cuda:1")
    assert (device.asked(), os.environ["CUDA_VISIBLE_DEVICES"]) == ("cuda", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    device.ask_for("cuda:1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    with pytest.raises(UserError, match="expected a GPU below 1"):
        device.ask_for("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="expected no number beside accelerate launch"):
        device.ask_for("cuda:0")


def test_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert_refused(call("decompose", "--device", "mps", cwd=tmp_path), "expected 'mps' on this machine, found a CPU")
    monkeypatch.setenv(device.ASKED, "cuda")
    for use in (device.on_cpu, lambda: device.place(torch.nn.Linear(2, 2))):
        with pytest.raises(UserError, match="expected 'cuda' on this machine, found a CPU alone"):
            use()


def test_a_model_moves_where_it_is_asked(monkeypatch):
    model = torch.nn.Linear(2, 2)
    device.place(model)
    assert model.weight.device.type == "cpu"
    monkeypatch.setattr(device, "refuse_missing", lambda _: None)
    monkeypatch.setenv(device.ASKED, "meta")
    device.place(model)
    assert model.weight.device.type == "meta"


def test_commands_without_a_model_take_no_device(tmp_path):
    assert_refused(call("ls", "--device", "cpu", cwd=tmp_path), "ls: no such option: --device")


def test_env(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLEDLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    result = call("env", cwd=tmp_path)
    lines = {line[:20].strip(): line[21:] for line in result.stdout.splitlines()}
    assert lines["torch"] == version("torch")
    assert lines["transformers"] == version("transformers")
    assert lines["python"].startswith(platform.python_version())
    assert lines["cache of rows"] == str(tmp_path / "cache")
    assert lines["hub"] == "online"
    assert {"peft", "accelerate", "datasets", "processors", "threads", "accelerator"} <= lines.keys()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline" in call("env", cwd=tmp_path).stdout
    asked = call("env", "--devices", cwd=tmp_path).stdout
    assert ("computes on the CPU" in asked) == (not torch.accelerator.is_available())


@pytest.mark.processes
def test_nothing_heavy_is_imported(tmp_path):
    """One process for all: what is imported by one command is seen at the next."""
    code = """
import sys
from stabledllm.cli.main import main
for words in (["env"], ["ls"], ["cp", "sft"], ["train", "-h"], ["eval", "--help"], ["generate", "-h"], ["--help"],
              ["train", "sft-synthetic", "--btach", "3"], ["train", "sft-synthetic", "--steps", "fast"],
              ["trian"], ["decompose", "--data", "nope.jsonl"], ["eval", "--rows", "x"], ["fit", "--method", "mirorr"],
              ["generate", "hi", "--steps", "x"], ["experiment", "quickstart", "--seeds", "1,1"], ["power"]):
    sys.argv = ["stabledllm", *words]
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    wrong = words[0] in ("trian", "power") or len(words) > 2
    assert (code == 2) == wrong, (words, code)
    heavy = {"torch", "transformers", "matplotlib", "scipy", "datasets"} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
