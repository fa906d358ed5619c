"""Outlier steps are noted with what is needed to replay them, as an unbroken run would note them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stabledllm.training import run as training_run
from stabledllm.training.spikes import LEAST, read_spikes
from stabledllm.training.trainer import MDMTrainer
from tests.fakes.run import small_run, train

STEPS = {"steps": 16, "save_every": 4, "log_every": 1, "spikes": {"factor": 3, "window": 12}}


class Killed(Exception):
    """In the place of a kill."""


def spiking(monkeypatch, steps: tuple[int, ...], times: float = 100.0, stop_at: int | None = None) -> None:
    """Let the loss of these steps count many times over."""
    compute = MDMTrainer.compute_loss

    def louder(self, *args, **kwargs):
        step = self.state.global_step + 1
        if step == stop_at:
            raise Killed
        return compute(self, *args, **kwargs) * (times if step in steps else 1.0)

    monkeypatch.setattr(MDMTrainer, "compute_loss", louder)


def without_time(spikes: list[dict]) -> list[dict]:
    return [{key: value for key, value in spike.items() if key != "time"} for spike in spikes]


def test_outliers_are_noted_and_told_once_in_a_window(tmp_path, monkeypatch):
    spiking(monkeypatch, (3, 12, 14))
    settings = small_run(tmp_path) | STEPS
    _, said = train(settings)
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    norms = {line["step"]: line["grad_norm"] for line in history if "grad_norm" in line}
    spikes = read_spikes(tmp_path / "run")
    assert [spike["step"] for spike in spikes] == [12, 14], f"of the first {LEAST} steps none is one"
    for spike, checkpoint in zip(spikes, ("checkpoint-8", "checkpoint-12"), strict=True):
        step = spike["step"]
        before = sorted(norms[s] for s in range(max(1, step - 12), step))
        middle = (before[(len(before) - 1) // 2] + before[len(before) // 2]) / 2
        assert spike["grad_norm"] == norms[step] > 3 * middle
        assert spike["median"] == pytest.approx(middle)
        assert spike["checkpoint"] == checkpoint
    told = [line for line in said if re.search(r" outlier: | outlier steps are", line)]
    assert len(told) == 2, said
    assert told[0].startswith("      12  outlier: gradient norm ")
    assert told[0].endswith(f"why: stabledllm replay {tmp_path / 'run'} --step 12")
    assert told[1] == f"2 outlier steps are in {tmp_path / 'run' / 'spikes.jsonl'}"


def test_a_run_that_goes_on_notes_what_an_unbroken_one_does(tmp_path, monkeypatch):
    whole, cut = (small_run(tmp_path) | STEPS | {"out": str(tmp_path / name)} for name in ("whole", "cut"))
    with monkeypatch.context() as patch:
        spiking(patch, (11, 14))
        train(whole)
    with monkeypatch.context() as patch:
        spiking(patch, (11, 14), stop_at=15)
        with pytest.raises(Killed):
            train(cut)
    stale = tmp_path / "cut" / "replays" / "step-14.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    (tmp_path / "cut" / "spikes.jsonl").open("a").write('{"step": 14, "gr')
    spiking(monkeypatch, (11, 14))
    train(cut)
    assert without_time(read_spikes(tmp_path / "cut")) == without_time(read_spikes(tmp_path / "whole"))
    assert not stale.exists(), "what was replayed of a step that is made again"


def test_a_calm_run_has_no_file(tmp_path):
    train(small_run(tmp_path) | STEPS)
    assert not (tmp_path / "run" / "spikes.jsonl").exists()


@pytest.mark.parametrize(("keep", "kept"), [(0, ["checkpoint-16"]), (1, ["checkpoint-8", "checkpoint-16"])])
def test_the_checkpoint_before_an_outlier_can_be_kept(tmp_path, monkeypatch, keep, kept):
    spiking(monkeypatch, (11,))
    spikes = STEPS["spikes"] | {"keep": keep}
    train(small_run(tmp_path) | STEPS | {"spikes": spikes}, trainer={"save_total_limit": 1})
    assert sorted(p.name for p in Path(tmp_path / "run").glob("checkpoint-*")) == sorted(kept)


def test_what_is_noted_changes_no_run(tmp_path, monkeypatch):
    """A finished run is the same run under other settings of it."""
    settings = small_run(tmp_path) | STEPS
    record, _ = train(settings)
    monkeypatch.setattr(training_run, "build_trainer", None)
    assert train(settings | {"spikes": {"factor": 9}})[0] == record
