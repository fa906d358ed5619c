"""A run killed while its completions are decoded is not trained again, and ends as if it had not been killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.evaluation import completing
from stabledllm.training import finishing, run
from tests.cli.forked import command

DATA = {"train": "synthetic:easy", "train_rows": 12, "validation_rows": 3, "test_rows": 9}
DECODING = {"length": 16, "steps": 16, "block": 8, "temperature": 0.7, "seed": 3}
SETTINGS = {
    "data": DATA, "decoding": DECODING, "generate_batch": 2, "batch": 4, "steps": 2, "log_every": 1,
    "method": "ppots+mirror", "ppots": {"rows": 4, "rates": 6, "masks": 2, "starts": 2},
}  # fmt: skip


def train(out: Path, **change) -> dict:
    return run.train(TrainSettings.model_validate(SETTINGS | change | {"out": str(out)}), say=lambda _: None)


def without_times(record: dict) -> dict:
    kept = {k: v for k, v in record.items() if k not in ("seconds", "config")}
    accuracy = dict(record["metrics"]["accuracy"])
    accuracy["decoding_stats"] = {
        k: v for k, v in accuracy["decoding_stats"].items() if k not in ("seconds", "tokens_per_second")
    }
    return json.loads(json.dumps(kept | {"metrics": record["metrics"] | {"accuracy": accuracy}}))


def stop_after(batches: int, monkeypatch) -> None:
    complete, calls = completing.complete, []

    def stopping(*arguments, **more):
        calls.append(1)
        if len(calls) > batches:
            raise KeyboardInterrupt
        return complete(*arguments, **more)

    monkeypatch.setattr(completing, "complete", stopping)


def refuse_to_train(monkeypatch) -> None:
    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(run.MDMTrainer, "train", never)


LORA = {"rank": 2, "modules_to_save": ["norm"]}
NEW = {"model": "new:tiny", "init_seed": 3}


@pytest.mark.parametrize(("change", "batches"), [({}, 3), ({"lora": LORA}, 0), (NEW, 1)], ids=["whole", "lora", "new"])
def test_stopped_while_decoding_it_is_only_decoded_further(tmp_path, monkeypatch, change, batches):
    whole = train(tmp_path / "whole", **change)
    with monkeypatch.context() as patch:
        stop_after(batches, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", **change)
    assert not (tmp_path / "cut" / "run.json").exists()
    with monkeypatch.context() as patch:
        refuse_to_train(patch)
        with pytest.raises(UserError, match="seed=42, found seed=43"):
            train(tmp_path / "cut", **change, seed=43)
        with pytest.raises(UserError, match=r"decoding.seed=3, found decoding.seed=4"):
            train(tmp_path / "cut", **change, decoding=DECODING | {"seed": 4})
        cut = train(tmp_path / "cut", **change)
    assert without_times(cut) == without_times(whole)
    assert without_times(json.loads((tmp_path / "cut" / "run.json").read_text())) == without_times(whole)
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}, "no journal is left behind"
    assert finishing.TRAINED not in names
    texts = [(tmp_path / name / "completions.jsonl").read_bytes() for name in ("cut", "whole")]
    assert texts[0] == texts[1]


@pytest.mark.processes
def test_killed_through_the_command_line(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", generate_batch=1)
    plan = {key: value for key, value in SETTINGS.items() if key != "generate_batch"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(plan | {"generate_batch": 1, "out": "cut"}))
    journal = tmp_path / "cut" / "journal" / "completions-0.jsonl"
    process = command("train", "recipe.yaml", cwd=tmp_path)
    process.until(lambda: journal.is_file() and len(journal.read_bytes().splitlines()) > 2)
    process.kill()
    assert not (tmp_path / "cut" / "run.json").exists(), "killed before it finished"
    refuse_to_train(monkeypatch)
    monkeypatch.chdir(tmp_path)
    cut = train(Path("cut"), generate_batch=1)
    assert without_times(cut) == without_times(whole)


def test_a_journal_of_a_run_that_was_here_before_is_not_taken(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", steps=3)
    (tmp_path / "run" / finishing.TRAINED).unlink()
    assert without_times(train(tmp_path / "run")) == without_times(train(tmp_path / "other"))
