"""The user's own callbacks: from a recipe and from Python, in resumed runs, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import transformers
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

import stabledllm
from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.training import run
from stabledllm.training.callbacks import all_callbacks, failing_by_name, given_callbacks, named_callbacks
from stabledllm.training.progress import StepBar
from tests.cli.runner import assert_refused, in_process
from tests.fakes.run import small_run, train

MODULE = """
from transformers import EarlyStoppingCallback, TrainerCallback
import beside_my_callbacks

class Writes(TrainerCallback):
    def on_init_end(self, args, state, control, **_):
        open("seen.txt", "a").write("init ")
    def on_step_end(self, args, state, control, **_):
        open("seen.txt", "a").write(f"{state.global_step} ")

class Takes(TrainerCallback):
    def __init__(self, folder):
        self.folder = folder

class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            self.write()
    def write(self):
        raise KeyError("samples")

class FailsAtOnce(TrainerCallback):
    def on_init_end(self, args, state, control, **_):
        open("/nowhere/at/all", "w")

class TakesTooLittle(TrainerCallback):
    def on_step_end(self, args, state, control):
        pass

def function():
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A working directory with a module of callbacks, which imports another beside it."""
    (tmp_path / "my_own_callbacks.py").write_text(MODULE)
    (tmp_path / "beside_my_callbacks.py").write_text("")
    (tmp_path / "broken_callbacks.py").write_text("raise RuntimeError('not today.')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_own_callbacks", "beside_my_callbacks", "broken_callbacks"):
        sys.modules.pop(name, None)


class Counts(TrainerCallback, ExportableState):
    """Counts steps, over resumes too."""

    def __init__(self, steps: int = 0):
        self.steps = steps
        self.seen: list[str] = []

    def on_init_end(self, args, state, control, model=None, **_):
        self.seen.append("init" if model is not None else "no model")

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        self.seen.append(str(state.global_step))

    def on_train_end(self, args, state, control, **_):
        Path(args.output_dir, "counted.txt").write_text(str(self.steps))

    def state(self) -> dict:
        return {"args": {"steps": self.steps}, "attributes": {}}


class Stops(TrainerCallback):
    """Ends a run after its third step."""

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 3


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def from_python(settings: dict, *callbacks) -> dict:
    return stabledllm.train(TrainSettings.model_validate(settings), callbacks=callbacks, say=lambda _: None)


def test_a_recipe_names_callbacks_of_the_working_directory(module):
    settings = small_run(module / "with")
    recipe = module / "mine.yaml"
    recipe.write_text(json.dumps(settings | {"callbacks": ["my_own_callbacks.Writes"]}))
    assert in_process("validate", str(recipe), cwd=module).returncode == 0
    result = in_process("train", str(recipe), cwd=module)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (module / "seen.txt").read_text() == "init 1 2 3 4 "
    record = json.loads((module / "with" / "run" / "run.json").read_text())
    assert record["config"]["callbacks"] == ["my_own_callbacks.Writes"]
    assert "callbacks" not in record["identity"]
    plain, _ = train(settings | {"out": str(module / "without")})
    assert record["history"] == json.loads(json.dumps(plain["history"]))
    assert weights(module / "with" / "run") == weights(module / "without")
    assert str(module) == sys.path[-1], "for what the module imports later, behind every library"
    again = in_process("train", str(recipe), "callbacks=[]", cwd=module)
    assert "already finished" in again.stdout


def test_python_gives_objects_and_classes(tmp_path):
    counts = Counts()
    record = from_python(small_run(tmp_path), counts, Stops)
    assert counts.seen == ["init", "1", "2", "3"]
    assert record["steps"] == 3
    assert record["config"]["callbacks"] == [f"{__name__}.Counts", f"{__name__}.Stops"]
    assert stabledllm.train is run.train
    assert "train" not in stabledllm.__all__, "import * stays light"


@pytest.mark.parametrize("before", [True, False], ids=["had it", "had it not"])
def test_a_run_goes_on_with_a_callback_and_its_state(tmp_path, before):
    settings = small_run(tmp_path)
    from_python(settings, *([Counts()] if before else []))
    out = tmp_path / "run"
    whole = weights(out)
    (out / "run.json").unlink()
    shutil.rmtree(out / "checkpoint-4")
    shutil.rmtree(out / "model")
    from_python(settings, Counts())
    assert (out / "counted.txt").read_text() == ("4" if before else "2")
    assert "Counts" in json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert weights(out) == whole


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Fails", ["'my_own_callbacks.Fails' failed in write, my_own_callbacks.py, line 20 (KeyError: 'samples')"]),
        ("FailsAtOnce", ["FailsAtOnce' failed in on_init_end, my_own_callbacks.py, line 24 (FileNotFoundError:"]),
        ("TakesTooLittle", ["'my_own_callbacks.TakesTooLittle' failed (TypeError:", "unexpected keyword argument"]),
    ],
)
def test_an_error_inside_a_callback_is_told_as_its_own(module, name, words):
    recipe = module / "mine.yaml"
    recipe.write_text(json.dumps(small_run(module / "failing") | {"callbacks": [f"my_own_callbacks.{name}"]}))
    result = in_process("train", str(recipe), cwd=module)
    assert_refused(result, "callbacks: ", *words)
    assert "mistake of stabledllm" not in result.stderr


def test_a_callback_that_failed_hinders_no_run_that_goes_on_without_it(module):
    whole = train(small_run(module / "whole"))[0]
    settings = small_run(module / "failing")
    with pytest.raises(UserError, match="Fails' failed"):
        train(settings, callbacks=["my_own_callbacks.Fails"], save_every=1)
    record, said = train(settings, save_every=1)
    assert any(line.startswith("resuming from") for line in said)
    assert record["metrics"] == whole["metrics"]


def test_an_error_elsewhere_is_not_told_as_a_callbacks(tmp_path, monkeypatch):
    """transformers holds callbacks in variables of its own loop too, where it saves their states."""

    def fails(*_, **__):
        raise RuntimeError("not theirs")

    monkeypatch.setattr(run.MDMTrainer, "compute_loss", fails)
    with pytest.raises(RuntimeError, match="not theirs"):
        from_python(small_run(tmp_path), Counts())


def test_a_function_that_merely_holds_a_callback_is_not_told_as_its_call():
    held = Counts()
    with pytest.raises(RuntimeError, match="not theirs"), failing_by_name([held]):
        raise RuntimeError(f"not theirs, {held.steps}")


def test_one_that_is_named_and_given_is_refused(module):
    with pytest.raises(UserError, match="each class once"):
        all_callbacks(["my_own_callbacks.Writes"], named_callbacks(["my_own_callbacks.Writes"]))


def test_a_callbacks_own_sentence_stays(tmp_path):
    class Refuses(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            raise UserError("samples: expected room for them, found none.")

    with pytest.raises(UserError, match=r"^samples: expected room for them, found none\.$"):
        from_python(small_run(tmp_path), Refuses)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Writes", "expected dotted names of classes, such as my_callbacks.SaveSamples, found 'Writes'"),
        ("my_own_callbacks:Writes", "expected dotted names of classes"),
        ("gone_callbacks.Writes", "'gone_callbacks' does not import (ModuleNotFoundError: No module named"),
        ("broken_callbacks.Any", "'broken_callbacks' does not import (RuntimeError: not today)"),
        ("my_own_callbacks.Gone", "expected a class 'Gone' in my_own_callbacks, found none"),
        ("my_own_callbacks.function", "expected a transformers.TrainerCallback, found 'my_own_callbacks.function'"),
        ("my_own_callbacks.Takes", "expected a class that is made without arguments"),
        ("my_own_callbacks.EarlyStoppingCallback", "expected a class of your own"),
        ("transformers.EarlyStoppingCallback", "expected a class of your own"),
        ("stabledllm.training.progress.StepBar", "expected a class of your own"),
        ("os.system", "expected a class of your own"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_sentence(module, name, words):
    with pytest.raises(UserError) as refused:
        named_callbacks([name])
    assert words in str(refused.value)
    assert str(refused.value).count(". ") == 0


def test_refusals_come_before_anything_is_loaded(module):
    for command in ("validate", "train"):
        result = in_process(command, "sft-synthetic", "callbacks=[gone_callbacks.Writes]", cwd=module)
        assert_refused(result, "key 'callbacks'", "gone_callbacks")
    assert not (module / "runs").exists()
    twice = "callbacks=[my_own_callbacks.Writes,my_own_callbacks.Writes]"
    assert_refused(in_process("validate", "sft-synthetic", twice, cwd=module), "each class once", "Writes' twice")
    assert_refused(in_process("validate", "sft-synthetic", "callbacks=a.B", cwd=module), "a list such as [a, b]")


@pytest.mark.parametrize(
    "given",
    [print, 3, transformers.ProgressCallback, StepBar("x"), object()],
    ids=["function", "number", "class", "bar", "object"],
)
def test_what_is_no_callback_of_the_users_own_is_refused_from_python(given):
    with pytest.raises(UserError, match=r"callbacks: expected a (transformers\.TrainerCallback|class of your own)"):
        given_callbacks([given])
