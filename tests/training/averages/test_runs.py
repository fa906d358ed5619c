"""Averages through a whole run: what they are of, what they change (nothing), and what is left of them after a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from stabledllm.config import load_recipe
from stabledllm.config.settings import AverageSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from stabledllm.training import finishing, run
from stabledllm.training.averages import watch
from stabledllm.training.averages.rebuilding import plan_rebuilding, rebuild
from stabledllm.training.averages.rules import Rule
from stabledllm.training.history import read_history
from tests.cli.runner import assert_refused, in_process
from tests.fakes.run import merged, small_run, train
from tests.fakes.trainer import make_trainer

AVERAGE = {"ema": [0.5], "tail": [0.5], "power": [0.05, 0.1], "snapshots": 2}
NAMES = ["ema-0.5", "tail-0.5", "power-0.05", "power-0.1"]
LIVELY = {"learning_rate": 1e-2, "lr_scheduler_type": "constant"}
"""Weights that move, so that no average is near the last ones."""


NONE = {"ema": [], "tail": [], "power": []}


class Watches(TrainerCallback):
    """Keeps the weights after every step."""

    def __init__(self):
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **_):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.seen.append({name: p.detach().clone() for name, p in trained.items()})


def settings_of(folder: Path, **change) -> dict:
    own = {"steps": 6, "save_every": 2, "log_every": 1, "eval_every": 3, "average": AVERAGE, "trainer": LIVELY}
    return merged(merged(small_run(folder), own), change)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with averages, the weights after each of its steps, and the same run without."""
    folder = tmp_path_factory.mktemp("averages")
    watch, settings = Watches(), settings_of(folder)
    said: list[str] = []
    record = run.train(_validated(settings), say=said.append, callbacks=[watch])
    plain, _ = train(settings, average=NONE, out=str(folder / "plain"))
    return settings, record, watch.seen, plain, said


def _validated(settings: dict) -> TrainSettings:
    return TrainSettings.model_validate(settings)


def test_the_averages_change_nothing_of_the_run(whole):
    settings, record, _, plain, _ = whole
    out = Path(settings["out"])
    ours = [{k: v for k, v in entry.items() if "/" not in k} for entry in record["history"]]
    assert ours == plain["history"], "losses, norms and evaluations of the last weights"
    assert weights(out / "model").keys() == weights(out.parent / "plain" / "model").keys()
    for key, tensor in weights(out.parent / "plain" / "model").items():
        assert torch.equal(weights(out / "model")[key], tensor), key
    assert record["metrics"] == plain["metrics"]
    assert "averages" not in plain


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_average_is_the_mean_of_the_weights_by_its_profile(whole, name):
    settings, record, seen, _, _ = whole
    kind, _, value = name.partition("-")
    rule, n = Rule(kind, float(value)), 3 if kind == "tail" else 6
    assert record["averages"][name]["counted"] == n
    profile = rule.profile(np.arange(1.0, n + 1), n)
    saved = load_model(str(Path(settings["out"]) / f"model-{name}"))
    for key, tensor in saved.model.named_parameters():
        steps = [each[key].double() for each in seen[-n:]]
        expected = sum(w * each for w, each in zip(profile, steps, strict=True))
        torch.testing.assert_close(tensor.detach().double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(tensor, seen[-1][key])


def test_each_is_evaluated_beside_the_last_weights(whole):
    settings, record, _, _, said = whole
    out = Path(settings["out"])
    assert list(record["averages"]) == NAMES
    assert json.loads((out / "run.json").read_text())["averages"] == record["averages"]
    for name, kept in record["averages"].items():
        nll, change = kept["metrics"]["validation_nll"], kept["difference"]["validation_nll"]
        assert change["value"] == pytest.approx(nll["value"] - record["metrics"]["validation_nll"]["value"])
        assert nll["value"] != record["metrics"]["validation_nll"]["value"]
        assert any(line.startswith(f"average {name}: validation NLL") for line in said)
        alone, _ = train(
            settings, model=str(out / kept["model"]), average=NONE, steps=1, eval_every=None, save_every=None,
            trainer={"learning_rate": 0.0}, out=str(out.parent / f"alone-{name}"),
        )  # fmt: skip
        assert alone["metrics"]["validation_nll"]["value"] == pytest.approx(nll["value"], rel=1e-6)
    evaluated = [line for line in read_history(out) if "eval_nll" in line]
    assert [sorted(name for name in line if "/" in name) for line in evaluated] == [
        sorted(f"{figure}/{name}" for figure in ("eval_nll", "eval_nll_stderr") for name in names)
        for names in ([n for n in NAMES if "tail" not in n], NAMES)
    ], "a tail of half the steps begins after step 3"
    assert evaluated[-1]["eval_nll/ema-0.5"] == record["averages"]["ema-0.5"]["metrics"]["validation_nll"]["value"]


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(whole, tmp_path, step):
    settings, record, _, _, _ = whole
    out = Path(settings["out"])
    cut = tmp_path / "cut"
    shutil.copytree(out / f"checkpoint-{step}", cut / f"checkpoint-{step}")
    for folder in (out / "averages").glob("step-*"):  # a killed run also leaves snapshots of steps that are made again
        shutil.copytree(folder, cut / "averages" / folder.name)
    (cut / "averages" / "step-6" / "power-0.1.safetensors").write_bytes(b"other")
    again, _ = train(settings, out=str(cut))
    assert again["averages"] == record["averages"]
    kept = {name: content for name, content in tree(out).items() if not name.startswith("checkpoint-")}
    assert {name: content for name, content in tree(cut).items() if not name.startswith("checkpoint-")} == kept


class _KilledAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _killed(settings: dict, step: int) -> None:
    run.train(_validated(settings), say=lambda _: None, callbacks=[_KilledAt(step)])


@pytest.mark.processes
def test_a_killed_run_goes_on_to_the_same_bits(whole, tmp_path):
    settings, record, _, _, _ = whole
    cut = settings | {"out": str(tmp_path / "cut")}
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(cut, 5))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again, said = train(cut)
    assert any("resuming from" in line and "checkpoint-4" in line for line in said)
    assert again["averages"] == record["averages"]
    assert tree(Path(cut["out"])) == tree(Path(settings["out"]))


def test_a_run_killed_while_it_decodes_scores_each_average_in_the_end(tmp_path, monkeypatch):
    """What the averages decode is journalled apart, and a resumed evaluation reads them from their folders."""
    test = {"data": {"test": "synthetic:easy", "test_rows": 3}, "decoding": {"length": 8, "steps": 2, "block": 8}}
    change = test | {"generate_batch": 1, "average": {"ema": [0.5], "tail": [0.5]}, "untuned": False}
    settings = settings_of(tmp_path, **change)
    record, said = train(settings)
    out = Path(settings["out"])
    for name in ("ema-0.5", "tail-0.5"):
        assert set(record["averages"][name]["metrics"]) == {"validation_nll", "accuracy"}
        assert record["averages"][name]["metrics"]["accuracy"]["n"] == 3
        assert len((out / "averages" / name / "completions.jsonl").read_text().splitlines()) == 3
        assert any(line.startswith(f"average {name}: accuracy") for line in said)
    assert not (out / "journal").exists()

    def stop(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "cut").mkdir()
    cut = settings | {"out": str(tmp_path / "cut")}
    scored, calls = finishing.score_generated, []

    def twice(*args, **more):
        calls.append(args)
        return scored(*args, **more) if len(calls) < 2 else stop()

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "score_generated", twice)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    again, said = train(cut)
    assert any("already trained" in line for line in said)
    assert values(again) == values(record)
    shutil.rmtree(tmp_path / "cut" / "model-ema-0.5")
    (tmp_path / "cut" / "run.json").replace(tmp_path / "cut" / "trained.json")
    third, said = train(cut)
    assert any("passed over" in line and "model-ema-0.5" in line for line in said), said
    assert values(third) == values(record)


def values(record: dict) -> dict:
    """The metrics without the time that decoding took."""
    every = {"": record, **record["averages"]}
    return {(name, metric): v["value"] for name, kept in every.items() for metric, v in kept["metrics"].items()}


def test_another_average_is_another_run(whole, tmp_path):
    settings, _, _, _, _ = whole
    with pytest.raises(UserError, match=r"expected the run that is there with average.ema=\[0.5\], found .*=\[0.9\]"):
        train(settings, average={"ema": [0.9]})
    with pytest.raises(UserError, match=r"average.ema=\[0.5\], found average.ema=\[\]"):
        train(settings, average=NONE)
    with pytest.raises(UserError, match="found 'average'"):
        train(settings, average={"ema": [0.9]}, allow_changed=["average"])


def test_a_step_of_such_a_run_is_rebuilt_and_its_averages_stay(whole, tmp_path):
    settings, _, _, _, _ = whole
    out = Path(settings["out"])
    before = tree(out)
    done = in_process("replay", str(out), "--step", "4", "--out", "step.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tree(out) == before


def test_adapters_alone_are_averaged(tmp_path):
    settings = settings_of(tmp_path, lora={"rank": 2}, average={"ema": [0.5], "power": [0.05, 0.1]})
    record, _ = train(settings)
    out = Path(settings["out"])
    held = load_file(out / "checkpoint-4" / "averages" / "ema-0.5.safetensors")
    assert held
    assert all("lora_" in name for name in held)
    saved = weights(out / "model-ema-0.5")
    assert saved.keys() == weights(out / "model").keys()
    assert not (out / "model-ema-0.5" / "model.safetensors").exists()
    assert any(not torch.equal(saved[key], each) for key, each in weights(out / "model").items())
    assert load_model(str(out / "model-ema-0.5")).model.get_base_model() is not None
    shutil.copytree(out / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
    again, _ = train(settings, out=str(tmp_path / "cut"))
    assert again["averages"] == record["averages"]
    assert torch.equal(weights(tmp_path / "cut" / "model-ema-0.5")[min(saved)], saved[min(saved)])
    (tmp_path / "rebuilt").mkdir()
    rebuild(plan_rebuilding(out, 0.1), tmp_path / "rebuilt")
    for key, tensor in weights(out / "model-power-0.1").items():
        torch.testing.assert_close(weights(tmp_path / "rebuilt")[key], tensor)


def test_averages_of_bfloat16_weights_are_float32(tmp_path):
    settings = settings_of(tmp_path, dtype="bfloat16", average={"ema": [0.999]}, eval_every=None)
    record, _ = train(settings)
    out = Path(settings["out"])
    held = load_file(out / "checkpoint-6" / "averages" / "ema-0.999.safetensors")
    saved = weights(out / "model-ema-0.999")
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert record["averages"]["ema-0.999"]["counted"] == 6
    shared = held.keys() & saved.keys()
    assert shared
    for key in shared:
        assert torch.equal(held[key].bfloat16(), saved[key])


def test_in_main_memory_they_are_the_same(whole, tmp_path):
    settings, record, _, _, _ = whole
    again, _ = train(settings, average={"on_cpu": True}, out=str(tmp_path / "cpu"))
    assert again["averages"] == record["averages"]


class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 2


def test_a_run_that_is_stopped_before_a_tail_begins_has_none(tmp_path):
    said: list[str] = []
    settings = settings_of(tmp_path, save_every=None, eval_every=None)
    record = run.train(_validated(settings), say=said.append, callbacks=[Stops()])
    assert list(record["averages"]) == [name for name in NAMES if "tail" not in name]
    assert any("average tail-0.5: none" in line for line in said)
    assert plan_rebuilding(Path(settings["out"]), 0.07).step == 2, "its last snapshot is of where it ended"


def test_without_validation_rows_they_are_saved_alone(tmp_path):
    settings = settings_of(tmp_path, data={"validation": None, "validation_share": 0.0}, save_every=None)
    record, _ = train(settings)
    assert record["averages"]["ema-0.5"]["metrics"] == {}
    assert (Path(settings["out"]) / "model-ema-0.5" / "stabledllm.json").is_file()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["average.ema=[1.0]"], "average.ema"),
        (["average.ema=0.9"], "a list such as"),
        (["average.tail=[0]"], "average.tail"),
        (["average.power=[0.3]"], "average.power"),
        (["average.ema=[0.9,0.9]"], "expected each one once"),
        (["trainer.average=true"], "write average.ema, average.tail or average.power"),
        (["ema_decay=0.9"], "average.ema"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(keys, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        load_recipe("sft-synthetic", keys)


@pytest.mark.parametrize(
    ("key", "needed"),
    [("average.snapshots=4", "average.power beside it"), ("average.on_cpu=true", "an average beside")],
)
def test_a_key_that_would_do_nothing_is_refused(key, needed, tmp_path):
    assert_refused(in_process("validate", "sft-synthetic", key, cwd=tmp_path), f"expected {needed}")
    assert in_process("validate", "sft-synthetic", key, "average.power=[0.1]", cwd=tmp_path).returncode == 0


def test_sharding_that_hides_the_weights_is_refused(monkeypatch, tmp_path):
    trainer = make_trainer(tmp_path / "run")
    monkeypatch.setattr(watch, "fsdp_version", lambda _: 1)
    with pytest.raises(UserError, match=r"key 'average': expected whole weights .* found FSDP version 1; launch with"):
        watch.watch_averages(trainer, AverageSettings(ema=[0.9]), tmp_path, None)


@pytest.mark.parametrize(("steps", "of_tail"), [(8, 5), (14, 7)])
def test_a_tail_goes_on_or_begins_anew_under_another_number_of_steps(tmp_path, steps, of_tail):
    settings = settings_of(tmp_path, eval_every=None, untuned=False)
    train(settings)
    record, _ = train(settings, steps=steps, allow_changed=["steps"])
    assert record["averages"]["tail-0.5"]["counted"] == of_tail
    assert record["averages"]["power-0.1"]["counted"] == steps


KINDS = {
    "pairs": {"objective": {"kind": "dpo"}, "method": "fixedcount", "dpo": {"budget": 2, "reference": "kept"}},
    "prompts": {"objective": {"kind": "grpo"}, "grpo": {"group": 2, "rollout": {"length": 8, "steps": 2, "block": 8}}},
    "window": {"objective": {"window": [0.5, 1.0]}},
    "blocks": {"block_size": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_keeps_them_and_stays_as_it_is(tmp_path, kind):
    """Averages are measured by what else is measured on held-out rows, but for the reward, which the log tells."""
    settings = settings_of(tmp_path, save_every=None, eval_every=None, steps=3, untuned=False, **KINDS[kind])
    if kind == "pairs":
        rows = [{"prompt": f"{i}?", "chosen": f"It is {i}.", "rejected": "No!"} for i in range(12)]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings["data"] = {"train": str(tmp_path / "pairs.jsonl"), "validation_share": 0.25}
    if kind == "prompts":
        small = {"train_rows": 6, "validation_rows": 2, "test_rows": 1}
        settings |= {"batch": 2, "generate_batch": 1, "data": {"train": "synthetic:easy", **small}}
        settings["decoding"] = {"length": 8, "steps": 2, "block": 8}
    record, _ = train(settings)
    plain, _ = train(settings, average=NONE, out=str(tmp_path / "plain"))
    for key, tensor in weights(tmp_path / "plain" / "model").items():
        assert torch.equal(weights(tmp_path / "run" / "model")[key], tensor), key
    assert [entry["loss"] for entry in record["history"]] == [entry["loss"] for entry in plain["history"]]
    for kept in record["averages"].values():
        assert kept["counted"] in (2, 3)
        assert set(kept["metrics"]) == set(record["metrics"]) - {"reward"}
        nll = [each["metrics"]["validation_nll"]["value"] for each in (kept, record)]
        assert nll[0] != nll[1]
    expected = {"pairs": "preference_loss", "prompts": "accuracy", "window": "validation_objective"}
    assert expected.get(kind, "validation_nll") in record["averages"]["ema-0.5"]["metrics"]


def test_a_run_that_is_older_than_averages_goes_on_and_is_not_repeated(tmp_path):
    settings = {key: value for key, value in settings_of(tmp_path).items() if key != "average"}
    train(settings)
    out = Path(settings["out"])
    for path in (out / "run.json", out / "checkpoint-6" / "stabledllm.json"):
        record = json.loads(path.read_text())
        record.get("identity", record).pop("average")
        path.write_text(json.dumps(record))
    _, said = train(settings)
    assert any("already finished" in line for line in said)
    (out / "run.json").unlink()
    _, said = train(settings)
    assert any("resuming from" in line for line in said)
    (out / "run.json").unlink()
    with pytest.raises(UserError, match=r"average.ema=\[\], found average.ema=\[0.9\]"):
        train(settings, average={"ema": [0.9]})
