"""Decoding that does not fit the model is refused before training and before an evaluation, not when it decodes."""

from __future__ import annotations

import pytest

from stabledllm.build import set_form
from stabledllm.config.settings import EvalSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.evaluation import run
from stabledllm.models.loading import load_model

ASKED = {"decoding": {"sub_block": 4}}
REFUSED = r"^decoding\.sub_block: expected a model trained in blocks, found 4 for one that is not; write block=4\.$"


def test_before_training():
    loaded = load_model("tiny")
    with pytest.raises(UserError, match=REFUSED):
        set_form(loaded, TrainSettings.model_validate(ASKED))
    set_form(loaded, TrainSettings.model_validate(ASKED | {"block_size": 8}))
    assert loaded.model.config.block_size == 8


def test_before_an_evaluation(tmp_path, monkeypatch):
    def measured(*_):
        raise AssertionError("the NLL was begun")

    monkeypatch.setattr(run, "_measure_nll", measured)
    asked = {"model": "tiny", "rows": 1, "out": str(tmp_path / "out"), "data": {"train": "synthetic:easy"}}
    with pytest.raises(AssertionError, match="begun"):
        run.evaluate(EvalSettings.model_validate(asked), lambda _: None)
    with pytest.raises(UserError, match=REFUSED):
        run.evaluate(EvalSettings.model_validate(asked | ASKED), lambda _: None)
