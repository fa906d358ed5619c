"""Training on streamed rows: resumed bit for bit without reading what came before, and the same however it is split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from stabledllm.config.settings import TrainSettings
from stabledllm.data.stream_files import StreamFiles
from stabledllm.errors import UserError
from stabledllm.training import run
from stabledllm.training.streaming import PLACE
from tests.checks.trajectory import assert_same_trajectory
from tests.fakes.run import merged, write_model
from tests.fakes.streams import answers, documents, rows_of_steps, write_folder, write_lines
from tests.fakes.trainer import STEPS, make_trainer


class Killed(BaseException):
    """What stands for a kill: no error that the callback's name would be told with."""


class KilledAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Killed


def settings_in(folder: Path, make=answers) -> dict:
    """A run of 12 steps of 6 rows on 60 examples, a checkpoint every 4."""
    write_folder(folder / "data", make)
    data = {
        "train": str(folder / "data"), "streaming": True, "shuffle_buffer": 8, "max_len": 48, "short_share": 0.2,
        "validation": str(write_lines(folder / "validation.jsonl", make(100, 3))),
    }  # fmt: skip
    return {
        "model": str(write_model(folder / "base")), "data": data, "batch": 6, "steps": 12, "save_every": 4,
        "log_every": 1, "eval_draws": 1, "trainer": {"use_cpu": True}, "out": str(folder / "run"),
    }  # fmt: skip


def train(settings: dict, *callbacks, **change) -> tuple[dict, list[str]]:
    said: list[str] = []
    checked = TrainSettings.model_validate(merged(settings, change))
    return run.train(checked, callbacks=callbacks, say=said.append), said


def weights(out: str) -> dict:
    return load_file(Path(out) / "model" / "model.safetensors")


def assert_same(a: dict, b: dict) -> None:
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    ("make", "more"),
    [(answers, {}), (documents, {"method": "lowdisc+adaptive+fixedcount", "adaptive": {"every": 3}, "steps": 20})],
    ids=["answers", "documents"],
)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch, make, more):
    settings = settings_in(tmp_path, make) | more
    whole, said = train(settings, out=str(tmp_path / "whole"))
    assert any(note.startswith("train: streamed from") for note in whole["data_notes"])
    assert any("of which the first" in line and "for what needs rows before training" in line for line in said)
    with pytest.raises(Killed):
        train(settings, KilledAt(10))
    place = json.loads((tmp_path / "run" / "checkpoint-8" / PLACE).read_text())
    assert place["place"]["row"] + place["skip"] == 48
    assert place["place"]["row"] > 0, "what lies before the place is not tokenised again"
    read, rows = [], StreamFiles.rows

    def counted(self, file, skip=0):
        for row in rows(self, file, skip):
            read.append(row[0])
            yield row

    monkeypatch.setattr(StreamFiles, "rows", counted)
    resumed, said = train(settings)
    assert any(line.startswith("train: the stream goes on in part-") for line in said)
    known, steps = 60, (settings["steps"] - 8) * 6
    if make is answers:
        assert len(read) <= known + place["skip"] + steps + 2 * 8, "nor read"
    assert_same(weights(str(tmp_path / "whole")), weights(str(tmp_path / "run")))
    assert resumed["history"] == whole["history"]
    assert whole["data_notes"][-1].startswith("train: 72 rows were read in 2 passes" if make is answers else "train: ")
    assert train(settings)[1][-1].endswith("already finished")


def test_a_fit_is_made_on_the_first_rows(tmp_path):
    ppots = {"rows": 6, "rates": 4, "masks": 2, "starts": 2}
    record, said = train(settings_in(tmp_path), method="ppots", ppots=ppots, steps=2)
    assert record["probe_forward_passes"] > 0
    assert any("of which the first" in line for line in said)


def test_the_order_is_that_of_its_seed(tmp_path):
    settings = settings_in(tmp_path)
    losses = [
        [entry["loss"] for entry in train(settings, steps=3, out=str(tmp_path / name), **more)[0]["history"]]
        for name, more in (("a", {}), ("b", {"order_seed": 42}), ("c", {"order_seed": 3}), ("d", {"micro_batch": 2}))
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert losses[0] == pytest.approx(losses[3], rel=1e-4)


def test_another_stream_is_refused_or_begun_from_its_first_row(tmp_path):
    settings = settings_in(tmp_path)
    train(settings)
    other = str(write_folder(tmp_path / "other", files=3))
    with pytest.raises(UserError, match=r"data\.content\.train|data\.train"):
        train(settings, data={"train": other}, steps=16)
    with pytest.raises(UserError, match=r"data\.streaming=True"):
        train(settings, data={"streaming": False}, steps=16)
    record, _ = train(settings, data={"train": other}, steps=16, allow_changed=["data", "steps"])
    assert record["steps"] == 16
    assert record["data_notes"][-1].startswith("train: 24 rows were read in 1 pass")
    saved = json.loads((tmp_path / "run" / "checkpoint-16" / PLACE).read_text())
    assert saved["place"]["row"] + saved["skip"] == 24
    again, _ = train(settings, data={"train": other}, steps=18, allow_changed=["data", "steps"])
    assert again["data_notes"][-1].startswith("train: 36 rows were read in 1 pass")


def test_a_run_in_memory_goes_on_as_a_stream(tmp_path):
    settings = settings_in(tmp_path)
    train(settings, data={"streaming": False}, steps=8)
    record, _ = train(settings, allow_changed=["data", "steps"])
    assert record["data_notes"][-1].startswith("train: 24 rows were read in 1 pass")


def test_a_run_without_validation_rows(tmp_path):
    record, _ = train(settings_in(tmp_path), data={"validation": None, "validation_share": 0}, steps=2)
    assert record["steps"] == 2
    assert "validation_nll" not in record["metrics"]


def test_a_row_with_given_parts_is_refused_in_blocks_when_it_comes(tmp_path):
    settings = settings_in(tmp_path)
    parts = [{"type": "text", "text": "Yes "}, {"type": "text", "text": "no", "train": False}]
    turns = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": parts}]
    write_lines(tmp_path / "data" / "part-9.jsonl", [{"messages": turns}])
    with pytest.raises(UserError, match=r"part-9\.jsonl:1: expected an answer that is trained as a whole"):
        train(settings, block_size=8)


def test_a_bad_row_ends_the_run_with_its_place_and_keeps_the_checkpoint(tmp_path):
    settings = settings_in(tmp_path)
    settings["data"] |= {"shuffle_buffer": 1, "train": str(write_lines(tmp_path / "a.jsonl", answers(0, 2000)))}
    path = tmp_path / "a.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:1040], "{broken\n", *lines[1041:]]))
    with pytest.raises(UserError, match=r"a\.jsonl:1041: expected a JSON object, found broken JSON"):
        train(settings, batch=90, save_every=5)
    assert (tmp_path / "run" / "checkpoint-10" / PLACE).is_file()


def test_splitting_a_step_changes_nothing(tmp_path):
    folder = write_folder(tmp_path / "data", documents)
    losses = []
    for micro, accumulation in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path / f"{micro}", "lowdisc+fixedcount", micro=micro, accumulation=accumulation,
            train=rows_of_steps(folder, STEPS, 8), evaluated=[],
        )  # fmt: skip
        trainer.train()
        losses.append((trainer.recorded.draws, trainer.recorded.losses))
    assert losses[0][0] == losses[1][0]
    assert_same_trajectory(losses[0][1], losses[1][1])


def test_rows_are_given_forwards_alone(tmp_path):
    rows = rows_of_steps(write_folder(tmp_path / "data", documents), 4, 8)
    assert len(rows) == 32
    first = [rows[number] for number in range(10)]
    with pytest.raises(IndexError, match="row 3 of a stream was asked for after row 9"):
        rows[3]
    every_other = rows_of_steps(tmp_path / "data", 4, 8)
    assert [every_other[number] for number in (1, 5, 9)] == [first[1], first[5], first[9]]
    rows.close()


def test_another_buffer_is_another_stream(tmp_path):
    """Its rows leave it in another order, so that those given before cannot be told from those to come."""
    settings = settings_in(tmp_path)
    train(settings, steps=8)
    record, said = train(settings, data={"shuffle_buffer": 20}, allow_changed=["data", "steps"])
    assert not any("the stream goes on" in line for line in said)
    assert record["data_notes"][-1].startswith("train: 24 rows were read in 1 pass")
    again, said = train(settings, data={"shuffle_buffer": 20}, steps=14, allow_changed=["data", "steps"])
    assert any("the stream goes on" in line for line in said)
    assert again["data_notes"][-1].startswith("train: 36 rows were read in 1 pass")


def test_a_step_of_more_rows_than_a_pass_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"key 'batch': expected at most .* to train on, 60, found 61; write batch=60"):
        train(settings_in(tmp_path), batch=61)
