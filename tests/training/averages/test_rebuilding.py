"""Averages of other widths from a run's snapshots: near those that the run would have kept, as near as is stated."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import TrainerCallback

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.training import run
from stabledllm.training.averages.rebuilding import plan_rebuilding
from tests.cli.runner import assert_refused, in_process
from tests.fakes.run import merged, small_run, train

WANTED = [0.03, 0.075, 0.2]


class Watches(TrainerCallback):
    def __init__(self):
        self.seen: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, model=None, **_):
        self.seen.append(torch.cat([p.detach().double().flatten() for p in model.parameters()]))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run that keeps two widths in snapshots, and the averages that it is to give as well."""
    folder = tmp_path_factory.mktemp("rebuilding")
    change = {
        "steps": 24, "save_every": None, "untuned": False, "average": {"power": [0.05, 0.1, *WANTED], "snapshots": 8},
        "trainer": {"learning_rate": 1e-2, "lr_scheduler_type": "constant"},
    }  # fmt: skip
    settings, watch = merged(small_run(folder), change), Watches()
    run.train(TrainSettings.model_validate(settings), say=lambda _: None, callbacks=[watch])
    out = Path(settings["out"])
    for width in WANTED:  # as if they had not been asked for
        for path in (out / "averages").glob(f"step-*/power-{width}.safetensors"):
            path.unlink()
    return out, watch.seen


def flat(path: Path, like: dict) -> torch.Tensor:
    tensors = load_file(path)
    return torch.cat([tensors[key].double().flatten() for key in like])


@pytest.mark.parametrize("width", WANTED)
def test_a_rebuilt_average_is_as_near_as_is_stated(kept, tmp_path, width):
    out, seen = kept
    done = in_process("average", str(out), "--power", str(width), "--out", "rebuilt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "rebuilt" / "average.json").read_text())
    assert record["average"] == f"power-{width}"
    assert len(record["of"]) == len(record["coefficients"]) == 16
    assert sum(record["coefficients"]) == pytest.approx(1, abs=1e-9)
    direct = load_file(out / f"model-power-{width}" / "model.safetensors")
    ours = flat(tmp_path / "rebuilt" / "model.safetensors", direct)
    theirs = flat(out / f"model-power-{width}" / "model.safetensors", direct)
    error = float((ours - theirs).norm())
    furthest = max(float((a - b).norm()) for a, b in combinations(seen, 2))
    rounding = record["growth"] * 2**-22 * float(theirs.norm())
    assert error <= record["mismatch"] * furthest + rounding
    assert record["mismatch"] < 0.05
    last = flat(out / "model" / "model.safetensors", direct)
    assert error < 0.15 * float((last - theirs).norm()), "far nearer than the last weights are"
    assert f"power-{width} after step 24 from 16 stored averages" in done.stdout


def test_an_earlier_step_is_that_of_a_snapshot(kept):
    out, _ = kept
    plan = plan_rebuilding(out, 0.1, 12)
    assert (plan.step, len(plan.files)) == (12, 8)
    assert plan.fit.mismatch < 1e-6
    with pytest.raises(UserError, match=r"expected --step to be that of a snapshot \(3, 6, .* 24\), found 13"):
        plan_rebuilding(out, 0.1, 13)


def test_a_rebuilt_model_is_told_as_one_of_its_run(kept, tmp_path):
    out, _ = kept
    done = in_process("average", str(out), "--power", "0.15", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    place = out / "model-power-0.15"
    assert json.loads((place / "stabledllm.json").read_text())["method"] == "standard"
    assert_refused(in_process("average", str(out), "--power", "0.15", cwd=tmp_path), "expected a new folder")


def test_what_cannot_be_rebuilt_is_refused_in_a_sentence(kept, tmp_path):
    out, _ = kept

    def refused(folder: Path, width: str, *said: str) -> None:
        assert_refused(in_process("average", str(folder), "--power", width, cwd=tmp_path), *said)

    refused(out, "0.3", "expected a --power above 0 and up to 0.28")
    refused(tmp_path, "0.1", "expected the folder of a training run")
    plain = merged(small_run(tmp_path / "plain"), {"untuned": False})
    train(plain, steps=1, save_every=None)
    refused(Path(plain["out"]), "0.1", "expected snapshots", "average.power")
    (Path(plain["out"]) / "averages" / "step-1").mkdir(parents=True)
    refused(Path(plain["out"]), "0.1", "found none")
    (Path(plain["out"]) / "averages" / "step-1" / "power-0.1.safetensors").write_bytes(save({"a": torch.ones(1)}))
    refused(Path(plain["out"]), "0.1", "power-0.1.safetensors: expected an average of weights, found another file")
