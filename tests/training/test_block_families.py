"""SDAR and Fast-dLLM v2 in the Trainer: any split of a step, their own blocks unless told, adapters, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.blocks import BlockMeter, UnitMeter
from stabledllm.models.loading import load_model
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.training.run import train
from tests.checks.trajectory import assert_same_trajectory
from tests.fakes.block_models import MASK_ID, write_fast_dllm, write_sdar
from tests.fakes.trainer import STEPS, make_trainer
from tests.models.families.cases import config_of, stored

WRITERS = {"sdar": write_sdar, "fast-dllm": write_fast_dllm}
PAD = 256
SMALL = {
    "data": {"train": "synthetic:easy", "train_rows": 12, "validation_rows": 3, "test_rows": 2},
    "method": "lowdisc+fixedcount",
    "decoding": {"length": 16},
    "batch": 4,
    "steps": 2,
    "trainer": {"learning_rate": 1e-3},
}


def rows(n: int) -> list[TokenRow]:
    """Rows whose prompts end anywhere in a block."""
    ids = torch.randint(0, 256, (n, 24), generator=torch.Generator().manual_seed(4)).tolist()
    return [TokenRow(ids[i][: 14 + i % 9], 1 + i % 7) for i in range(n)]


def settings(tmp_path, **changes) -> TrainSettings:
    return TrainSettings.model_validate(
        SMALL | {"model": str(tmp_path / "hub"), "out": str(tmp_path / "run")} | changes
    )


def quiet(_: str) -> None:
    """Says nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_splitting_a_step_changes_nothing(tmp_path, name):
    folder = WRITERS[name](tmp_path / "hub", std=0.3)

    def run(micro: int, accumulation: int):
        trainer = make_trainer(
            tmp_path / f"{micro}", "lowdisc+ppots+mirror", micro=micro, accumulation=accumulation,
            block_size=4, train=rows(22), model=load_model(str(folder)).model.double(), ids=(MASK_ID, PAD),
        )  # fmt: skip
        trainer.model.config.block_size = 4
        trainer.train()
        return trainer.recorded

    whole, split = run(8, 1), run(1, 8)
    assert split.draws == whole.draws
    assert_same_trajectory(split.losses, whole.losses)
    assert len(whole.draws) > STEPS * 8, "several units per row"


@pytest.mark.parametrize("name", WRITERS)
def test_units_measured_one_by_one_add_up_to_the_rows(tmp_path, name):
    """At t = 1 everything is masked and nothing random; a unit may be a part of a block whose rest is prompt.

    A noisy block start would have a random t in the block before a unit, so that clean ones are compared."""
    loaded = load_model(str(WRITERS[name](tmp_path, std=0.3)))
    if name == "fast-dllm":
        loaded.model.config.block_start = "clean"
    loaded.model.double()
    data, key = rows(3), Key(0, 0)
    whole = BlockMeter(loaded, data, Objective(), block_size=8)
    units = UnitMeter(loaded, data, Objective(), block_size=8)
    cuts = [(1, 14), (2, 15), (3, 16)]
    assert [(u.prompt_length, len(u)) for u in units.rows] == [(a, b) for p, n in cuts for a, b in ((p, 8), (8, n))]
    assert whole.ratios_per_row == 2
    ones = torch.ones(6, dtype=torch.float64)
    each = units.losses(torch.arange(6), ones, Method(), key)
    row = whole.losses(torch.arange(3), ones[:3], Method(), key)
    torch.testing.assert_close(each.view(3, 2).sum(1) / units.units_per_row, row)


@pytest.mark.parametrize("name", WRITERS)
def test_its_own_blocks_unless_told_and_other_ones_are_saved(tmp_path, name):
    hub = WRITERS[name](tmp_path / "hub")
    own = {"sdar": 4, "fast-dllm": 8}[name]
    told = []
    record = train(settings(tmp_path), say=told.append)
    assert (record["config"]["block_size"], record["config"]["decoding"]["block"]) == (own, own)
    assert config_of(tmp_path / "run" / "model") == config_of(hub) | {"dtype": "float32"}
    record = train(settings(tmp_path, block_size=16, out=str(tmp_path / "other")), say=quiet)
    loaded = load_model(str(tmp_path / "other" / "model"))
    assert loaded.model.config.block_size == 16
    first, last = (stored(folder) for folder in (hub, tmp_path / "other" / "model"))
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[key], last[key]) for key in first)


def test_an_adapter_is_trained_in_the_blocks_of_its_base(tmp_path):
    write_sdar(tmp_path / "hub")
    record = train(settings(tmp_path, lora={"rank": 2}), say=quiet)
    assert record["config"]["block_size"] == 4
    loaded = load_model(str(tmp_path / "run" / "model"))
    data = rows(4)
    nll = row_nll(BlockMeter(loaded, data, Objective(), block_size=4))
    base = load_model(str(tmp_path / "hub"))
    assert not torch.equal(nll, row_nll(BlockMeter(base, data, Objective(), block_size=4)))
    with pytest.raises(UserError, match=r"^key 'block_size': expected 4, as model '.*' was trained, found 8\.$"):
        train(settings(tmp_path, lora={"rank": 2}, block_size=8, out=str(tmp_path / "b")), say=quiet)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("sdar", {"block_start": "clean"}, "key 'block_start': expected a model in blocks whose logits are shifted"),
        ("sdar", {"decoding": {"length": 16, "block": 8}}, "key 'decoding.block': expected block_size = 4, found 8"),
        ("sdar", {"method": "syrm"}, "'syrm' and block_size contradict"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path, name, change, says):
    WRITERS[name](tmp_path / "hub")
    with pytest.raises(UserError, match=says):
        train(settings(tmp_path, **change), say=quiet)


def test_what_predicts_a_blocks_first_token_changes_the_training_and_not_the_noise(tmp_path):
    write_fast_dllm(tmp_path / "hub", std=0.3)
    losses = {}
    for start in ("noisy", "clean"):
        record = train(settings(tmp_path, block_start=start, log_every=1, out=str(tmp_path / start)), say=quiet)
        losses[start] = [line["loss"] for line in record["history"] if "loss" in line]
    assert losses["noisy"][0] != losses["clean"][0]


def test_one_t_for_a_row_is_trained_fitted_and_told(tmp_path):
    write_sdar(tmp_path / "hub")
    ppots = {"rows": 4, "rates": 4, "masks": 2, "starts": 2}
    told = []
    shared = {"block_t": "row", "method": "ppots", "ppots": ppots}
    record = train(settings(tmp_path, **shared), say=told.append)
    assert record["config"]["block_t"] == "row"
    assert "all of a row with one t" in " ".join(" ".join(told).split())
    density = str(tmp_path / "run" / "p_of_t.json")
    change = json.loads(Path(density).read_text())["diagnostics"]["change"]
    assert change["n"] == ppots["rows"], "what p(t) changes on rows that it was not fitted on is told here too"
    with pytest.raises(UserError, match=r"expected a density fitted for block_t=own, found one for row\.$"):
        train(settings(tmp_path, method="ppots", p_of_t=density, out=str(tmp_path / "b")), say=quiet)
    with pytest.raises(UserError, match="key 'block_t': expected 'own' with method 'adaptive'"):
        train(settings(tmp_path, block_t="row", method="adaptive", out=str(tmp_path / "c")), say=quiet)
