"""Packed rows of models in blocks give the trajectory of padded ones, however a step is split."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.forward.nll import forward_nll
from stabledllm.models.families.two_copies import TwoCopies
from stabledllm.noise.methods import Draw
from stabledllm.training.expert_load import ExpertLoad, expert_load_of
from tests.fakes import llada2
from tests.fakes.block_models import MASK_ID, write_fast_dllm, write_sdar
from tests.fakes.trainer import make_trainer
from tests.models.families.cases import load, random_ids
from tests.training.test_packing import varied

WRITERS = {
    "sdar": (write_sdar, MASK_ID),
    "fast-dllm": (write_fast_dllm, MASK_ID),
    "llada2": (llada2.write_llada2, llada2.MASK_ID),
}
ROWS = [TokenRow(random_ids(1, 6 + 5 * i % 23, seed=i)[0].clamp(max=255).tolist(), 1 + i % 5) for i in range(22)]


def trained(out, method: str, micro: int, accumulation: int, **options):
    trainer = make_trainer(out, method, micro=micro, accumulation=accumulation, **options)
    trainer.train()
    return trainer


def assert_same(one, other, rtol: float) -> None:
    assert one.recorded.draws == other.recorded.draws
    assert one.recorded.losses == pytest.approx(other.recorded.losses, rel=rtol)
    assert one.statistics.forward_passes == other.statistics.forward_passes
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9 if rtol < 1e-8 else 1e-6)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("standard", {"one_t": True, "group_by_length": True}),
        ("lowdisc+complement", {}),
        ("strats+ppots+mirror", {"views_per_forward": 1}),
    ],
)
def test_the_trajectory_of_the_reference_model_is_that_of_padded_rows(tmp_path, method, options):
    form = {"train": varied(), "block_size": 6, "steps": 4} | options
    padded = trained(tmp_path / "padded", method, 4, 2, **form)
    packed = trained(tmp_path / "packed", method, 4, 2, packing=True, **form)
    assert_same(packed, padded, rtol=1e-9)


@pytest.mark.parametrize("name", WRITERS)
def test_the_trajectory_of_every_layout_is_that_of_padded_rows_in_any_split(tmp_path, name, monkeypatch):
    """Fast-dLLM's logits are shifted; LLaDA2 counts and balances the load of its experts."""
    write, mask_id = WRITERS[name]
    folder, sizes, of = write(tmp_path / "hub", std=0.3), {}, TwoCopies.of

    def run(kind: str, micro: int, accumulation: int, **options):
        def counted(masked, block_ids, *, packed=False):
            copies = of(masked, block_ids, packed=packed)
            sizes[kind] = sizes.get(kind, 0) + copies.token.numel()
            return copies

        monkeypatch.setattr(TwoCopies, "of", counted)
        model = load(folder).double()
        return trained(
            tmp_path / kind, "lowdisc+mirror", micro, accumulation, steps=3, train=ROWS, block_size=4, model=model,
            ids=(mask_id, 256), expert_load=expert_load_of(model, name, 0.01, 0.5) if name == "llada2" else None,
            **options,
        )  # fmt: skip

    padded, packed = run("padded", 8, 1), run("packed", 8, 1, packing=True)
    split = run("split", 1, 8, packing=True)
    assert sizes["packed"] < 0.8 * sizes["padded"]
    for other in (packed, split):
        assert_same(other, padded, rtol=1e-6)  # norms compute in float32
        for key in ("expert_load_max", "balance_loss"):
            seen = [[line[key] for line in run.state.log_history if key in line] for run in (other, padded)]
            assert seen[0] == pytest.approx(seen[1], rel=1e-6)
            assert bool(seen[0]) == (name == "llada2")


def test_kill_and_resume_is_bit_identical(tmp_path):
    form = {"train": varied(), "block_size": 6, "packing": True}
    whole = trained(tmp_path / "whole", "lowdisc", 4, 2, steps=4, **form)
    trained(tmp_path / "cut", "lowdisc", 4, 2, steps=4, save_strategy="steps", save_steps=2, **form)
    resumed = make_trainer(tmp_path / "cut", "lowdisc", micro=4, accumulation=2, steps=4, **form)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert resumed.recorded.losses == whole.recorded.losses[2:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_view_that_no_row_has_is_a_forward_that_counts_nowhere(tmp_path, name, packing):
    """As where views go one by one, and the only row of a micro-batch has one view. The layers take no empty batch."""
    write, mask_id = WRITERS[name]
    model, balance = load(write(tmp_path, std=0.3)).double().train(), ExpertLoad(loss=1.0)
    ids, real, one = torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool), torch.ones(1)
    inputs = {"input_ids": ids, "attention_mask": real, "block_ids": ids // 4, "row_weight": one, "step_weight": 1.0}
    inputs["counted"] = torch.ones(1, dtype=torch.bool)
    mask = torch.stack((real, ~real), dim=1)
    draw = Draw(one, one, mask, torch.ones(1, 2, 8), active=torch.tensor([[True, False]]))
    none = torch.zeros(1, 2, dtype=torch.bool)
    with balance.watching(model) if name == "llada2" else nullcontext():
        nll, forwards = forward_nll(
            model, inputs, replace(draw, active=none), mask_id, form={"block_ids": inputs["block_ids"]}, packing=packing
        )
    assert (nll.shape, forwards) == ((0,), 0)
    nll.sum().backward()
    if name == "llada2":
        assert balance.take(inputs, draw, none, packing).tolist() == [0.0]
        assert not balance._step.any()
