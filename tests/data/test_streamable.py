"""What cannot go with ``data.streaming`` is refused with what to write, before anything is read."""

from __future__ import annotations

import json

import pytest

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.streamable import refuse_unstreamable
from stabledllm.errors import Mistakes
from stabledllm.experiment.at_once import load_checked
from stabledllm.experiment.checks import check_experiment
from stabledllm.training.run import train

GOOD = ["data.train=a.jsonl", "data.validation=b.jsonl", "data.streaming=true", "steps=3", "data.train_rows=null"]
GOOD += ["batch=1"]  # the files hold one row
TOLD = {
    "steps=null": "since the rows of a pass are not counted, found none; write steps=1000, say.",
    "data.validation=null": "found none; write data.validation=PATH, or data.validation_share=0 to go without.",
    "data.train=synthetic:easy": "found 'synthetic:easy'; leave data.streaming out.",
    "data.train=scenes": "expected data in files or on the hub (data.train=PATH, text:PATH, hub:OWNER/NAME), found",
    "data.train=gsm8k:g.jsonl": "found 'gsm8k:g.jsonl'; leave data.streaming out.",
    "data.train_rows=100": "key 'data.train_rows': expected none under data.streaming",
    "data.few_shot=2": "key 'data.few_shot': expected 0 under data.streaming",
    "data.cache=rows": "key 'data.cache': expected none under data.streaming, which stores no rows, found 'rows'",
    "group_by_length=true": "key 'group_by_length': expected false under data.streaming",
    "trainer.dataloader_num_workers=2": "found 2; write data.workers=2 instead.",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": f"{name}?", "response": "2"}) + "\n")
    (tmp_path / "g.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    monkeypatch.chdir(tmp_path)


def replaced(*overrides: str) -> list[str]:
    """What goes with streaming, with some overrides in the place of those of the same key."""
    keys = {override.partition("=")[0] for override in overrides}
    return [*(each for each in GOOD if each.partition("=")[0] not in keys), *overrides]


def test_what_goes_with_it_is_not_refused(here):
    load_checked("sft-synthetic", GOOD)
    load_checked("sft-synthetic", replaced("packing=true", "data.workers=2", "data.every_turn=true"))


@pytest.mark.parametrize(("override", "words"), TOLD.items(), ids=TOLD)
def test_each_is_told_by_the_command_line(here, override, words):
    with pytest.raises(Mistakes) as told:
        load_checked("sft-synthetic", replaced(override))
    assert words in " ".join(told.value.sentences)
    load_checked("sft-synthetic", replaced(override, "data.streaming=false"))


def test_all_are_told_at_once(here):
    with pytest.raises(Mistakes) as told:
        load_checked("sft-synthetic", replaced("steps=null", "data.validation=null", "group_by_length=true"))
    assert len(told.value.sentences) == 3
    with pytest.raises(Mistakes) as told:
        load_checked("sft-synthetic", replaced("data.train_rows=40", "data.shuffle_buffer=0"))
    assert len(told.value.sentences) == 2, "a wrong value of another key hides none"


def test_a_script_is_told_too(here):
    settings = TrainSettings.model_validate({"data": {"train": "a.jsonl", "streaming": True}, "steps": 3})
    with pytest.raises(Mistakes, match=r"key 'data\.validation'"):
        train(settings)


def test_an_experiment_of_equal_compute_is_refused(here):
    data = {"train": "a.jsonl", "validation": "b.jsonl", "streaming": True}
    settings = ExperimentSettings.model_validate({"base": {"data": data, "steps": 3}})
    with pytest.raises(Mistakes, match=r"key 'equal': expected steps under base\.data\.streaming.*write equal=steps"):
        check_experiment(settings, print)
    refuse_unstreamable(settings.base, "steps")


def test_a_folder_of_its_own_splits_needs_no_other_validation(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("{}\n")
    refuse_unstreamable(TrainSettings.model_validate({"data": {"train": str(tmp_path), "streaming": True}, "steps": 3}))
