"""The untuned model's NLL beside the tuned one's, at the end of a run, and only where both are of the same rows."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import load_bundle
from stabledllm.data.token_rows import TokenRow
from stabledllm.evaluation.validation import mean_over_rows, row_nll
from stabledllm.experiment.workers import train_here
from stabledllm.forward.blocks import loss_meter
from stabledllm.models.loading import load_model
from stabledllm.noise.objective import Objective
from stabledllm.training import finishing, run
from stabledllm.training.untuned import UNTUNED, beside_untuned, save_untuned
from tests.fakes.run import merged, small_run, train, write_rows


def evaluated(settings: dict, model: str):
    """The NLL of each held-out row under a model, as training measures it."""
    checked, loaded = TrainSettings.model_validate(settings), load_model(model)
    rows = load_bundle(checked.data, loaded.tokenizer).validation
    meter = loss_meter(loaded, rows, Objective(), block_size=checked.block_size)
    return row_nll(meter, checked.eval_draws)


BLOCKS = {"block_size": 8, "decoding": {"block": 8, "length": 16, "steps": 16}}


@pytest.mark.parametrize("change", [{}, {"lora": {"rank": 2}}, BLOCKS], ids=["whole", "lora", "blocks"])
def test_both_are_those_of_the_models_themselves(tmp_path, change):
    settings = merged(small_run(tmp_path), change | {"trainer": {"learning_rate": 1e-2}})
    record, said = train(settings)
    before, after = (evaluated(settings, model) for model in (settings["model"], f"{settings['out']}/model"))
    untuned, change = (record[name]["validation_nll"] for name in ("untuned", "difference"))
    assert untuned == mean_over_rows(before).as_dict()
    assert record["metrics"]["validation_nll"]["value"] == pytest.approx(float(after.mean()), rel=1e-6)
    paired = mean_over_rows(after - before)
    assert change["value"] == pytest.approx(paired.value, rel=1e-5)
    assert (change["ci_low"], change["ci_high"]) == pytest.approx(paired.interval(), rel=1e-4)
    at = next(place for place, line in enumerate(said) if line.startswith("validation NLL"))
    assert said[at + 1].startswith(f"untuned model  {untuned['value']:.4g} ± ")
    assert said[at + 2].startswith(f"difference     {change['value']:+.4g} (95 % {change['ci_low']:+.3g} to ")
    assert json.loads((Path(settings["out"]) / "run.json").read_text())["difference"] == record["difference"]


def test_the_run_itself_is_not_changed(tmp_path):
    beside = TrainSettings.model_validate(small_run(tmp_path) | {"log_every": 1, "out": str(tmp_path / "beside")})
    alone = beside.model_copy(update={"out": str(tmp_path / "alone")})
    with_it = run.train(beside, say=lambda _: None)
    without = run.train(alone, say=lambda _: None, untuned=False)
    assert with_it["history"] == without["history"]
    assert with_it["metrics"] == without["metrics"]
    assert "untuned" not in without
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("beside", "alone")]
    assert models[0] == models[1]


def test_a_killed_run_knows_it_still(tmp_path, monkeypatch):
    settings = small_run(tmp_path)
    whole, _ = train(settings | {"out": str(tmp_path / "whole")})
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *_: {})
        train(settings)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    record, _ = train(settings)
    assert (record["untuned"], record["difference"]) == (whole["untuned"], whole["difference"])


def test_rows_that_changed_on_the_way_are_not_compared(tmp_path):
    settings = small_run(tmp_path)
    train(settings)
    write_rows(tmp_path / "validation.jsonl", 3, start=200)
    record, said = train(settings, steps=6, allow_changed=["steps", "data"])
    assert record["steps"] == 6
    assert "untuned" not in record
    assert not any(line.startswith("untuned model") for line in said)


def test_a_new_model_and_a_run_of_an_experiment_have_none(tmp_path):
    settings = small_run(tmp_path)
    record, _ = train(settings, model=f"new:{settings['model']}", out=str(tmp_path / "new"))
    assert "untuned" not in record
    train_here(TrainSettings.model_validate(settings))
    assert "untuned" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_one_row_has_a_difference_without_an_interval(tmp_path):
    settings = small_run(tmp_path)
    write_rows(tmp_path / "validation.jsonl", 1, 100)
    record, said = train(settings)
    assert record["difference"]["validation_nll"]["ci_low"] is None
    assert math.isfinite(record["difference"]["validation_nll"]["value"])
    assert any(line.startswith("difference ") and line.endswith("(one row: no interval)") for line in said)


@pytest.mark.parametrize("change", [{}, BLOCKS, {"eval_draws": 3}], ids=["rows", "blocks", "draws"])
def test_the_bar_of_an_evaluation_ends_at_its_total(tmp_path, monkeypatch, change):
    """Each of the evaluations of a run: before the first step, during training, at the end, where none was made yet."""
    from stabledllm.training import evaluating

    bars = []

    class Counted:
        def __init__(self, total, what, unit):
            self.total, self.done = total, 0
            bars.append(self)

        def update(self, n):
            self.done += n

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(evaluating, "bar", Counted)
    record, _ = train(small_run(tmp_path), eval_every=3, **change)
    assert record["steps"] == 4
    assert len(bars) == 3
    assert all(each.done == each.total > 0 for each in bars), [(each.done, each.total) for each in bars]


class Spoils(TrainerCallback):
    def on_train_end(self, args, state, control, model=None, **_):
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=5.0)


def test_the_last_evaluation_is_the_final_one_unless_the_model_has_changed_since(tmp_path, monkeypatch):
    evaluated, nll_of_rows = [], run.MDMTrainer.nll_of_rows
    monkeypatch.setattr(
        run.MDMTrainer,
        "nll_of_rows",
        lambda self, *a: evaluated.append(self.state.global_step) or nll_of_rows(self, *a),
    )
    plain, _ = train(small_run(tmp_path) | {"out": str(tmp_path / "plain")}, eval_every=2)
    assert evaluated == [0, 2, 4]
    assert plain["metrics"]["validation_nll"]["value"] == plain["history"][-1]["eval_nll"]
    settings = merged(small_run(tmp_path), {"out": str(tmp_path / "changed"), "eval_every": 2})
    changed = run.train(TrainSettings.model_validate(settings), say=lambda _: None, callbacks=[Spoils()])
    assert evaluated[3:] == [0, 2, 4, 4]
    before, after = changed["history"][-1]["eval_nll"], changed["metrics"]["validation_nll"]["value"]
    assert after > before + 0.1, "of the model as it is"


class Killed(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize("way", ["a new model", "not measured"])
def test_what_an_earlier_run_kept_is_not_taken_for_this_one_s(tmp_path, monkeypatch, way):
    """One that was killed before its first checkpoint leaves nothing that the next run could be compared with."""
    settings = small_run(tmp_path)

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run.MDMTrainer, "training_step", killed)
        with pytest.raises(Killed):
            train(settings)
    assert (tmp_path / "run" / UNTUNED).is_file()
    if way == "a new model":
        record, _ = train(settings, model=f"new:{settings['model']}")
    else:
        record = run.train(TrainSettings.model_validate(settings), say=lambda _: None, untuned=False)
    assert "untuned" not in record
    assert not (tmp_path / "run" / UNTUNED).exists()


def test_a_run_killed_while_it_is_scored_tells_its_losses_again(tmp_path, monkeypatch):
    settings = small_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(finishing, "_evaluate", lambda *_: {})
        _, before = train(settings)
    _, after = train(settings)
    told = [line for line in before if line.startswith(("validation NLL", "untuned model", "difference"))]
    assert len(told) == 3
    assert [line for line in after if line in told] == told


@pytest.mark.parametrize("other", [{"given": [2]}, {"tail": 1}, {"prompt_length": 2}], ids=str)
def test_rows_of_which_others_parts_are_given_are_other_rows(tmp_path, other):
    row = {"input_ids": [5, 6, 7, 8], "prompt_length": 1}
    values = torch.tensor([1.0, 3.0], dtype=torch.float64)
    save_untuned(tmp_path, [TokenRow(**row)] * 2, values, 4)
    assert beside_untuned(tmp_path, [TokenRow(**row)] * 2, values, 4)["difference"]["validation_nll"]["value"] == 0
    assert beside_untuned(tmp_path, [TokenRow(**row), TokenRow(**(row | other))], values, 4) is None
    assert beside_untuned(tmp_path, [TokenRow(**row)] * 2, values, 5) is None, "other draws"
