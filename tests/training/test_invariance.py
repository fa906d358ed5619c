"""Runs that must give one trajectory: 8 x 1 = 4 x 2 = 1 x 8 = two ranks, noise bit for bit, losses to 1e-9."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.objective import Objective
from tests.checks.trajectory import assert_same_trajectory
from tests.cli.forked import Forked, ranks
from tests.fakes.block_models import write_sdar
from tests.fakes.llada2 import write_llada2
from tests.fakes.streams import documents, write_folder
from tests.fakes.trainer import STEPS, make_trainer
from tests.training import rank


def run(tmp_path, name: str, method: str, micro: int, accumulation: int, **kwargs):
    trainer = make_trainer(tmp_path / name, method, micro=micro, accumulation=accumulation, **kwargs)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "method", ["standard", "strats+ppots+mirror", "lowdisc+fixedcount", "lowdisc+complement", "syrm+ema"]
)
def test_splitting_a_step_changes_nothing(tmp_path, method):
    whole = run(tmp_path, "8x1", method, 8, 1)
    for micro, accumulation in ((4, 2), (1, 8)):
        split = run(tmp_path, f"{micro}x{accumulation}", method, micro, accumulation)
        assert split.recorded.draws == whole.recorded.draws
        assert_same_trajectory(split.recorded.losses, whole.recorded.losses)
    assert len({step for step, _ in whole.recorded.draws}) == STEPS
    assert sum(step == 2 for step, _ in whole.recorded.draws) == 22 - 16, "the last step of an epoch is short"


def test_splitting_a_step_changes_nothing_under_token_normalisation(tmp_path):
    objective = Objective(normalization="token")
    whole = run(tmp_path, "8x1", "mirror", 8, 1, objective=objective)
    split = run(tmp_path, "2x4", "mirror", 2, 4, objective=objective)
    assert_same_trajectory(split.recorded.losses, whole.recorded.losses)
    row_mean = run(tmp_path, "row", "mirror", 8, 1)
    assert abs(row_mean.recorded.losses[0] - whole.recorded.losses[0]) > 1e-6


def test_a_flat_ppots_density_is_uniform_bit_for_bit(tmp_path):
    flat = Tabulated([0.3] * 4096, name="ppots")
    through_ppots = run(tmp_path, "flat", "ppots", 8, 1, sampler=flat)
    plain = run(tmp_path, "plain", "standard", 8, 1, sampler=Uniform())
    assert through_ppots.recorded.draws == plain.recorded.draws
    assert through_ppots.recorded.losses == plain.recorded.losses


def test_another_seed_of_the_framework_changes_no_draw(tmp_path):
    first = run(tmp_path, "a", "standard", 8, 1, steps=3)
    torch.manual_seed(99)
    second = run(tmp_path, "b", "standard", 8, 1, steps=3, data_seed=5)
    assert first.recorded.draws == second.recorded.draws


@pytest.mark.parametrize("method", ["lowdisc+ppots+mirror", "ema", "adaptive+mirror"])
def test_kill_and_resume_is_bit_identical(tmp_path, method):
    """Stops inside an epoch, resumes from the checkpoint in a new object, ends with the same bits."""
    whole = run(tmp_path, "whole", method, 4, 2)
    run(tmp_path, "cut", method, 4, 2, save_strategy="steps", save_steps=7)
    resumed = make_trainer(tmp_path / "cut", method, micro=4, accumulation=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-7"))
    assert resumed.recorded.losses == whole.recorded.losses[7:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    assert resumed.statistics.forward_passes == whole.statistics.forward_passes
    assert resumed.statistics.ema_state == whole.statistics.ema_state


ON_TWO_RANKS = [
    "strats+ppots+mirror", "adaptive", "lowdisc+fixedcount@stream", "standard@experts", "lowdisc+mirror@blocks",
]  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """What two gloo processes x 4 rows recorded; one launch runs every method: starting costs more than steps."""
    folder = tmp_path_factory.mktemp("ranks")
    write_folder(folder / "stream", documents)
    few = {"num_hidden_layers": 2, "num_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
    write_llada2(folder / "experts", std=0.3, config=few)
    write_sdar(folder / "blocks", std=0.3)
    for process in ranks(lambda launched: Forked(lambda: rank.main(folder, ON_TWO_RANKS), folder, launched)):
        ended = process.ended()
        assert ended.returncode == 0, ended.stderr[-2000:]
    return folder


@pytest.mark.processes
@pytest.mark.parametrize("method", ON_TWO_RANKS)
def test_two_ranks_draw_and_lose_the_same(two_ranks, tmp_path, method):
    """Two processes against one process x 8; 22 rows, so a rank repeats rows that must weigh 0."""
    whole = run(tmp_path, "whole", micro=8, accumulation=1, **rank.rows_for(method, two_ranks))
    draws, losses = {}, [0.0] * STEPS
    for number in range(2):
        record = json.loads((two_ranks / method / f"rank{number}.json").read_text())
        for step, position, t, masked in record["draws"]:
            assert (step, position) not in draws, "no row is counted by both ranks"
            draws[step, position] = (t, tuple(map(tuple, masked)))
        losses = [a + b for a, b in zip(losses, record["losses"], strict=True)]
        assert record["seen"] == list(range(1, STEPS + 1)), "callbacks see every step on every rank"
    assert draws == whole.recorded.draws
    assert_same_trajectory(losses, whole.recorded.losses)
