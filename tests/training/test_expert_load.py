"""The experts' load: counted over the whole step however it is split, balanced on request, kept by checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.experiment.at_once import load_checked
from stabledllm.models.families.routing import recorded, routers
from stabledllm.training.expert_load import ExpertLoad, expert_load_of
from tests.fakes import tiny
from tests.fakes.hub_models import write_llada, write_llada_moe
from tests.fakes.llada2 import MASK_ID, write_llada2
from tests.fakes.trainer import make_trainer
from tests.models.families.cases import load, random_ids

ROWS = [TokenRow(random_ids(1, 9 + i % 4, seed=i)[0].clamp(max=255).tolist(), 3) for i in range(22)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("experts")
    return {"llada2": write_llada2(root / "a", std=0.3), "llada-moe": write_llada_moe(root / "b", std=0.3)}


def run(folders, out, name="llada2", micro=8, accumulation=1, block_size=4, rate=0.0, loss=0.0, **options):
    model = load(folders[name]).double()
    return make_trainer(
        out, "standard", micro=micro, accumulation=accumulation, model=model, ids=(MASK_ID, 256), train=ROWS,
        block_size=block_size, expert_load=expert_load_of(model, name, rate, loss), **options,
    )  # fmt: skip


def biases(trainer) -> torch.Tensor:
    return torch.stack([router.bias for router in routers(trainer.model)])


def logged(trainer, key: str) -> list[float]:
    return [line[key] for line in trainer.state.log_history if key in line]


def test_splitting_a_step_changes_nothing(folders, tmp_path):
    runs = {}
    for micro, accumulation in ((8, 1), (1, 8)):
        trainer = run(
            folders, tmp_path / f"{micro}", micro=micro, accumulation=accumulation, rate=1e-3, loss=0.5, steps=4
        )
        trainer.train()
        runs[micro] = trainer
    assert runs[1].recorded.losses == pytest.approx(runs[8].recorded.losses, rel=1e-9)
    assert torch.equal(biases(runs[1]), biases(runs[8]))
    for key in ("expert_load_max", "experts_unused"):
        assert logged(runs[1], key) == logged(runs[8], key)
    assert logged(runs[1], "balance_loss") == pytest.approx(logged(runs[8], "balance_loss"))


def test_packing_changes_nothing(folders, tmp_path):
    runs = []
    for packing in (False, True):
        trainer = run(
            folders, tmp_path / f"{packing}", "llada-moe", block_size=None, loss=0.5, steps=3, packing=packing
        )
        trainer.train()
        runs.append(trainer)
    assert runs[1].recorded.losses == pytest.approx(runs[0].recorded.losses, rel=1e-9)
    assert logged(runs[0], "expert_load_max") == logged(runs[1], "expert_load_max")


def test_kill_and_resume_is_bit_identical(folders, tmp_path):
    options = {"rate": 0.01, "loss": 0.1, "micro": 4, "accumulation": 2, "steps": 6}
    whole = run(folders, tmp_path / "whole", **options)
    whole.train()
    cut = {"save_strategy": "steps", "save_steps": 3}
    run(folders, tmp_path / "cut", **options, **cut).train()
    resumed = run(folders, tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert resumed.recorded.losses == whole.recorded.losses[3:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert logged(resumed, "expert_load_max") == logged(whole, "expert_load_max")
    state = json.loads((tmp_path / "cut" / "checkpoint-3" / "trainer_state.json").read_text())
    assert "ExpertLoad" in state["stateful_callbacks"]


def test_each_way_of_balancing_has_its_effect(folders, tmp_path):
    """The biases move by the rate and no weight with them; the loss flattens the scores."""
    plain, moved, left, pushed = (
        run(folders, tmp_path / f"{i}", steps=8, rate=rate, loss=loss)
        for i, (rate, loss) in enumerate([(0.0, 0.0), (0.05, 0.0), (0.0, 1e-9), (0.0, 20.0)])
    )
    before = biases(plain)
    for trainer in (plain, moved, left, pushed):
        trainer.train()
    assert torch.equal(biases(plain), before)
    assert torch.equal(biases(pushed), before)
    steps = ((biases(moved) - before) / 0.05).round()
    torch.testing.assert_close(biases(moved), before + 0.05 * steps)
    assert steps.abs().max() > 3
    assert logged(moved, "expert_load_max")[-1] < logged(plain, "expert_load_max")[-1]
    assert not logged(plain, "balance_loss")
    assert logged(pushed, "balance_loss")[0] == logged(left, "balance_loss")[0]
    assert logged(pushed, "balance_loss")[-1] < logged(left, "balance_loss")[-1]
    assert plain.recorded.losses[0] == moved.recorded.losses[0] < pushed.recorded.losses[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_balancing_loss_written_out(folders, checkpointing):
    """Row by row from the scores and choices, with its gradient, also where activations are made a second time."""
    model = load(folders["llada2"]).double().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids, real = random_ids(2, 7), torch.ones(2, 7, dtype=torch.bool)
    real[1, 5:] = False
    balance, draw = ExpertLoad(loss=3.0), type("Draw", (), {"active": torch.ones(2, 1, dtype=torch.bool)})
    with balance.watching(model):
        model(ids, real, selected=real, targets=ids)
    inputs = {"attention_mask": real, "counted": torch.tensor([True, False])}
    inputs |= {"row_weight": torch.ones(2), "step_weight": 2.0}
    found = balance.take(inputs, draw, draw.active, packing=False)
    (wanted,) = torch.autograd.grad(found.sum(), [routers(model)[0].weight])
    model.gradient_checkpointing_disable()
    with recorded(model) as seen:
        model(ids, real)
    rows, load_E = [], torch.zeros(2, 8)
    for row, length in ((0, 7), (1, 5)):
        total = 0.0
        for r, ((score, chosen),) in enumerate(seen):
            scores, chose = score.view(2, 7, 8)[row, :length], chosen.view(2, 7, 3)[row, :length]
            for expert in range(8):
                times = int((chose == expert).sum())
                load_E[r, expert] += times * (row == 0)
                total = total + 8 / 3 * times / length * (scores[:, expert] / scores.sum(1)).mean()
        rows.append(3.0 * total / 2)
    torch.testing.assert_close(found, torch.stack(rows))
    torch.testing.assert_close(wanted, torch.autograd.grad(sum(rows), [routers(model)[0].weight])[0])
    assert torch.equal(balance._step.float(), load_E), "the row that only evens out ranks is not counted"


def test_the_balancing_loss_of_a_row_is_the_mean_over_its_views_however_they_are_split(folders):
    model = load(folders["llada2"]).double().train()
    ids, real = random_ids(2, 7), torch.ones(2, 7, dtype=torch.bool)
    active = torch.tensor([[True, True], [True, False]])
    inputs = {"attention_mask": real, "counted": torch.ones(2, dtype=torch.bool)}
    inputs |= {"row_weight": torch.ones(2), "step_weight": 2.0}
    draw = type("Draw", (), {"active": active})

    def taken(*parts):
        balance, losses = ExpertLoad(loss=1.0), 0.0
        for part in parts:
            rows = part.nonzero()[:, 0]
            with balance.watching(model):
                model(ids[rows], real[rows], selected=real[rows], targets=ids[rows])
            losses = losses + balance.take(inputs, draw, part, packing=False)
        return losses, balance._step

    none, first, second = torch.zeros(2, 1, dtype=torch.bool), active[:, :1], active[:, 1:]
    together, whole_load = taken(active)
    draw.active = first
    alone, alone_load = taken(first)
    torch.testing.assert_close(together, alone)
    assert whole_load.sum() == 1.5 * alone_load.sum(), "the load is that of every forward"
    draw.active = active
    split, split_load = taken(torch.cat((first, none), dim=1), torch.cat((none, second), dim=1))
    torch.testing.assert_close(split, together)
    assert torch.equal(split_load, whole_load)


def test_compiled_experts_in_blocks_are_refused(folders):
    """A graph keeps the noisy blocks that carry no loss, and so has other tokens than the load is counted of."""
    keys = ["trainer.torch_compile=true", "trainer.torch_compile_backend=eager"]
    with pytest.raises(UserError, match=r"^key 'trainer.torch_compile': expected false for a model with experts"):
        load_checked("sft", [f"model={folders['llada2']}", *keys], reads_data=False)
    load_checked("sft", [f"model={folders['llada-moe']}", *keys], reads_data=False)


@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "adapters"])
def test_checkpointing_with_re_entry_is_refused(folders, frozen):
    """There layers are computed without a graph, and the loss would change nothing."""
    model = load(folders["llada2"]).train()
    if frozen:
        model = get_peft_model(model, LoraConfig(target_modules=["query_key_value"], r=2))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    ids, balance = random_ids(2, 7), ExpertLoad(loss=1.0)
    with balance.watching(model):
        model(ids, selected=ids < 300, targets=ids)
    active = torch.ones(2, 1, dtype=torch.bool)
    with pytest.raises(UserError, match="expected use_reentrant false beside router"):
        balance.take({"attention_mask": active.expand(2, 7)}, type("Draw", (), {"active": active}), active, False)


def test_refusals(folders, tmp_path):
    dense, moe, llada2 = load(write_llada(tmp_path)), load(folders["llada-moe"]), load(folders["llada2"])
    for model in (dense, tiny.model(32)):
        assert expert_load_of(model, "it", 0.0, 0.0) is None
        for rate, loss, key in ((0.1, 0.0, "bias_rate"), (0.0, 0.1, "loss")):
            with pytest.raises(UserError, match=rf"key 'router.{key}': expected a model with experts, found 'it'"):
                expert_load_of(model, "it", rate, loss)
    with pytest.raises(UserError, match=r"expected a router whose bias only chooses .* write router.loss instead"):
        expert_load_of(moe, "it", 0.1, 0.0)
    llada2.peft_config = {}
    with pytest.raises(UserError, match="expected a model that is trained whole, found adapters"):
        expert_load_of(llada2, "it", 0.1, 0.0)
    assert expert_load_of(llada2, "it", 0.0, 0.1).loss == 0.1
