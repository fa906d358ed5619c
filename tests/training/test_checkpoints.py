"""Only whole checkpoints are resumed from, and there is always one: whatever is damaged, and wherever a kill falls."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from stabledllm.training import checkpoints
from stabledllm.training.checkpoints import STAMP, last_whole, remove, rotate, stamp
from tests.fakes.run import small_run, train
from tests.fakes.trainer import make_trainer

FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", STAMP]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    settings = small_run(tmp_path_factory.mktemp("done"))
    return settings, train(settings)[0]


@pytest.fixture
def killed(done, tmp_path):
    """Settings of a run that was killed after its last checkpoint."""
    shutil.copytree(done[0]["out"], tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    return done[0] | {"out": str(tmp_path / "run")}


def deleted(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(bytes(content))


def without_record_of_files(folder: Path) -> None:
    record = json.loads((folder / STAMP).read_text())
    del record["files"]
    (folder / STAMP).write_text(json.dumps(record))


@pytest.mark.parametrize("damage", [deleted, truncated, emptied, flipped])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_is_passed_over_and_it_is_said_why(killed, name, damage):
    out, said = Path(killed["out"]), []
    damage(out / "checkpoint-4" / name)
    if name == STAMP and damage is flipped:
        (out / "checkpoint-4" / STAMP).write_text('{"schema": "stabledllm/checkpoint/1", "files": {"a": 1}}')
    assert last_whole(out, said.append).folder.name == "checkpoint-2"
    assert len(said) == 1
    assert said[0].startswith(f"passed over {out / 'checkpoint-4'}"), said
    assert all(word in said[0] for word in (name, "expected", "found")), said


@pytest.mark.parametrize("damage", [deleted, truncated, emptied])
@pytest.mark.parametrize("name", [name for name in FILES if name != STAMP])
def test_one_without_a_record_of_its_files_is_looked_through(killed, name, damage):
    out, said = Path(killed["out"]), []
    without_record_of_files(out / "checkpoint-4")
    assert last_whole(out).folder.name == "checkpoint-4"
    damage(out / "checkpoint-4" / name)
    assert last_whole(out, said.append).folder.name == "checkpoint-2"
    assert name in said[0] or "expected" in said[0], said


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_flipped_bit_is_seen_by_the_files_own_checksums(killed, name):
    out = Path(killed["out"])
    without_record_of_files(out / "checkpoint-4")
    flipped(out / "checkpoint-4" / name)
    assert last_whole(out).folder.name == "checkpoint-2"


@pytest.mark.parametrize(
    "change",
    [
        {"parts": [{}]}, {"parts": 3}, {"parts": [{"steps": [1]}]}, {"files": []}, {"files": {"model.safetensors": {}}},
        {"files": {}},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_says_nonsense_is_passed_over(killed, change):
    path = Path(killed["out"]) / "checkpoint-4" / STAMP
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if change == {"files": {}}:
        (path.parent / "optimizer.pt").unlink()
    assert last_whole(Path(killed["out"])).folder.name == "checkpoint-2"


def equal_weights(a: Path, b: Path) -> bool:
    return (a / "model" / "model.safetensors").read_bytes() == (b / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("whole_left", [True, False])
def test_the_run_ends_with_the_same_bits_from_an_earlier_one_or_anew(done, killed, whole_left):
    out = Path(killed["out"])
    truncated(out / "checkpoint-4" / "optimizer.pt")
    if not whole_left:
        flipped(out / "checkpoint-2" / "model.safetensors")
    record, said = train(killed)
    assert equal_weights(out, Path(done[0]["out"]))
    assert any("passed over" in line for line in said)
    assert any("begins anew" in line for line in said) != whole_left
    for key in ("history", "forward_passes", "metrics", "parts", "steps"):
        assert record[key] == done[1][key], key
    assert last_whole(out).folder.name == "checkpoint-4", "what was damaged is written again"


def test_weights_alone_are_never_resumed_from(done, killed):
    # As save_only_model left them, which runs cannot ask for any more: whole by their own record.
    out = Path(killed["out"])
    for folder in out.glob("checkpoint-*"):
        record = json.loads((folder / STAMP).read_text())
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (folder / name).unlink()
            del record["files"][name]
        (folder / STAMP).write_text(json.dumps(record))
    record, said = train(killed)
    assert any("checkpoint-4: scheduler.pt: expected" in line for line in said), said
    assert equal_weights(out, Path(done[0]["out"]))
    assert record["history"] == done[1]["history"]


def test_a_damaged_final_model_is_made_again_from_the_last_checkpoint(done, killed):
    out = Path(killed["out"])
    shutil.copy(Path(done[0]["out"]) / "run.json", out / "trained.json")
    truncated(out / "model" / "model.safetensors")
    _, said = train(killed)
    assert any("passed over" in line and "model.safetensors" in line for line in said), said
    assert equal_weights(out, Path(done[0]["out"]))


class Killed(BaseException):
    """In the place of a kill."""


class Events:
    """Counts what is done to the file system, and kills at one of these events."""

    watched = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.copyfile")

    def __init__(self):
        self.on, self.count, self.last = False, 0, None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.on or event not in self.watched:
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+")):
            return
        if self.count == self.last:
            self.on = False
            raise Killed
        self.count += 1


EVENTS = Events()
"""One for all, since an audit hook cannot be taken away again."""


@pytest.fixture
def saving(tmp_path):
    """A trainer before its fifth step's checkpoint is saved, that of its third being there."""
    trainer = make_trainer(tmp_path, steps=5, save_strategy="steps", save_steps=3, save_total_limit=1)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    return trainer


def test_a_kill_at_any_event_of_saving_and_deleting_leaves_a_whole_one(saving, tmp_path):
    trainer, events = saving, 0
    shutil.copytree(tmp_path / "checkpoint-5", tmp_path / "kept")
    while True:
        for folder in tmp_path.glob("checkpoint-*"):
            shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", tmp_path / "checkpoint-5")
        trainer.state.global_step = 6
        EVENTS.count, EVENTS.last, EVENTS.on = 0, events, True
        try:
            trainer._save_checkpoint(trainer.model, None)
        except Killed:
            pass
        else:
            break
        finally:
            EVENTS.on = False
        found = last_whole(tmp_path)
        assert found is not None, f"nothing to resume from after event {events}"
        assert found.step in (5, 6)
        events += 1
    assert events > 12
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert trainer.args.save_total_limit == 1


def folders(out: Path, *steps: int, unstamped: tuple[int, ...] = ()) -> None:
    for step in (*steps, *unstamped):
        (out / f"checkpoint-{step}").mkdir()
        if step in steps:
            stamp(out / f"checkpoint-{step}", {}, None)


def left(out: Path) -> list[int]:
    return sorted(checkpoints.step_of(path) for path in out.glob("checkpoint-*"))


def test_the_oldest_go_first_by_their_steps_and_the_best_stays(tmp_path):
    folders(tmp_path, 2, 9, 10, 100)
    rotate(tmp_path, 3, [tmp_path / "checkpoint-100"])
    assert left(tmp_path) == [9, 10, 100]
    rotate(tmp_path, 1, [tmp_path / "checkpoint-100", tmp_path / "checkpoint-9"])
    assert left(tmp_path) == [9, 100]
    rotate(tmp_path, None, [])
    assert left(tmp_path) == [9, 100]


def test_what_was_cut_off_goes_before_what_is_whole(tmp_path):
    folders(tmp_path, 2, 4, unstamped=(3,))
    rotate(tmp_path, 2, [tmp_path / "checkpoint-4"])
    assert left(tmp_path) == [2, 4]


def test_the_record_is_the_first_to_go(tmp_path, monkeypatch):
    folders(tmp_path, 2)

    def stopped(_):
        raise Killed

    monkeypatch.setattr(checkpoints.shutil, "rmtree", stopped)
    with pytest.raises(Killed):
        remove(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-2" / STAMP).exists()


@pytest.mark.parametrize("layout", ["sharded", "fsdp", "adapter"])
def test_other_layouts_are_recorded_in_all_their_files(killed, layout):
    """Of each layout the files that its Trainer writes; every one of them missing is noticed."""
    folder = Path(killed["out"]) / "checkpoint-4"
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    if layout == "sharded":
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        own = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif layout == "fsdp":
        (folder / "optimizer.pt").unlink()
        own = [
            f"{part}_0/{name}" for part in ("pytorch_model_fsdp", "optimizer") for name in ("__0_0.distcp", ".metadata")
        ]
    else:
        own = ["adapter_model.safetensors"]
    for name in own:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(weights)
    record = json.loads((folder / STAMP).read_text())
    stamp(folder, {key: record[key] for key in record if key not in ("schema", "files", "parts")}, None)
    assert last_whole(folder.parent).folder == folder
    for name in own:
        (folder / name).rename(folder / "away")
        assert last_whole(folder.parent).folder.name == "checkpoint-2", name
        (folder / "away").rename(folder / name)
    if layout == "sharded":
        without_record_of_files(folder)
        (folder / own[1]).unlink()
        assert last_whole(folder.parent).folder.name == "checkpoint-2"


def test_a_state_of_another_step_is_no_state_of_this_one(killed):
    out = Path(killed["out"])
    without_record_of_files(out / "checkpoint-4")
    shutil.copy(out / "checkpoint-2" / "trainer_state.json", out / "checkpoint-4")
    assert last_whole(out).folder.name == "checkpoint-2"
