"""Noise in a foreign loop is the Trainer's own step: the same loss and gradient; whatever the split."""

from __future__ import annotations

import pytest
import torch

from stabledllm.data.rows import collate
from stabledllm.errors import UserError
from stabledllm.integrations import Noise
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import MethodOptions
from stabledllm.noise.objective import Objective
from tests.fakes.tiny import rows
from tests.fakes.trainer import DENSITY, make_trainer
from tests.integrations.test_alpha import saved

MASK = 256
METHODS = ["standard", "ppots", "mirror", "strats+ppots+mirror", "lowdisc+fixedcount", "lowdisc+complement", "clipped",
           "multisample3", "isad-exact"]  # fmt: skip


def own_step(tmp_path, method: str, objective: Objective) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradient of the Trainer's first step on 8 rows."""
    trainer = make_trainer(tmp_path, method, objective=objective)
    batch = collate(rows(8), 257) | {"place": torch.arange(8)}
    trainer._fix_positions([batch], torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), [p.grad for p in trainer.model.parameters()]


def noise(method: str, objective: Objective) -> Noise:
    return Noise(method, mask_id=MASK, p_of_t=DENSITY if "ppots" in method else None, objective=objective, seed=11)


@pytest.mark.parametrize("objective", [Objective(), Objective("unweighted", "token")])
@pytest.mark.parametrize("method", METHODS)
def test_the_step_is_the_trainers(tmp_path, method, objective):
    expected, gradients = own_step(tmp_path, method, objective)
    model = make_trainer(tmp_path, method, objective=objective).model
    batch = collate(rows(8), 257)
    taken = noise(method, objective).draw(
        batch["input_ids"], batch["maskable"], step=0, delimiter=batch["delimiter"] if "isad" in method else None
    )
    logits = model(taken.input_ids, attention_mask=batch["attention_mask"][taken.source]).logits
    loss = taken.loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for own, theirs in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, own, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalization", ["row", "token"])
@pytest.mark.parametrize("method", ["strats+ppots+mirror", "lowdisc+fixedcount"])
def test_micro_batches_add_up_to_the_step(tmp_path, method, normalization):
    objective = Objective(normalization=normalization)
    expected, _ = own_step(tmp_path, method, objective)
    model = make_trainer(tmp_path, method).model
    batch, total = collate(rows(8), 257), 0.0
    for part in ([0, 1, 2], [3, 4, 5, 6, 7]):
        taken = noise(method, objective).draw(
            batch["input_ids"][part], batch["maskable"][part], step=0, positions=torch.tensor(part), step_rows=8,
            step_weight=float(batch["maskable"].sum()),
        )  # fmt: skip
        out = model(
            taken.input_ids,
            attention_mask=batch["attention_mask"][part][taken.source],
            selected=taken.mask,
            targets=taken.targets,
        )
        total += taken.loss_of(out.nll).item()
    assert total == pytest.approx(expected, rel=1e-12)


def test_logits_of_the_masked_positions_alone_give_the_same_loss():
    ids = torch.randint(0, 50, (4, 12))
    taken = Noise("mirror", mask_id=50).draw(ids, torch.ones_like(ids).bool(), step=3)
    logits = torch.randn(len(taken.input_ids), 12, 51, dtype=torch.float64)
    assert torch.equal(taken.loss(logits), taken.loss(logits[taken.mask]))
    assert taken.loss(logits.bfloat16()) == taken.loss(logits.bfloat16().float()), "cross-entropies in float32 or wider"
    assert bool((taken.input_ids == torch.where(taken.mask, 50, taken.targets)).all())
    assert taken.draw.t.shape == (4,)


def test_the_draw_is_a_function_of_seed_and_step():
    ids, maskable = torch.randint(0, 50, (4, 12)), torch.ones(4, 12).bool()
    one = Noise("standard", mask_id=50, seed=1)
    assert torch.equal(one.draw(ids, maskable, 5).mask, one.draw(ids, maskable, 5).mask)
    assert not torch.equal(one.draw(ids, maskable, 5).mask, one.draw(ids, maskable, 6).mask)
    assert not torch.equal(
        one.draw(ids, maskable, 5).mask, Noise("standard", mask_id=50, seed=2).draw(ids, maskable, 5).mask
    )


def test_options_and_a_saved_density_act(tmp_path):
    ids, maskable = torch.randint(0, 50, (64, 12)), torch.ones(64, 12).bool()
    below = Noise("mirror", mask_id=50, options=MethodOptions(mirror_below=0.5)).draw(ids, maskable, 0)
    assert len(below.input_ids) == 64 + int((below.draw.t < 0.5).sum())
    file = saved(tmp_path / "p.json", "ppots", (1.0, 3.0))
    by_file = Noise("ppots", mask_id=50, p_of_t=file).draw(ids, maskable, 0)
    by_sampler = Noise("ppots", mask_id=50, p_of_t=Tabulated((1.0, 3.0))).draw(ids, maskable, 0)
    assert torch.equal(by_file.draw.weight, by_sampler.draw.weight)


def draw(noise: Noise, **more):
    return noise.draw(torch.zeros(3, 4).long(), torch.tensor([[1] * 4, [0] * 4, [1] * 4]).bool(), 0, **more)


def whole(noise: Noise, **more):
    return noise.draw(torch.zeros(3, 4).long(), torch.ones(3, 4).bool(), 0, **more)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: Noise("mirrored", mask_id=5), ["unknown part 'mirrored'"]),
        (lambda d: Noise("adaptive", mask_id=5), ["without 'adaptive'"]),
        (lambda d: Noise("ppots+ema", mask_id=5, p_of_t=DENSITY), ["without 'ema'"]),
        (lambda d: Noise("syrm", mask_id=5), ["without 'syrm'"]),
        (lambda d: Noise("ppots", mask_id=5), ["needs a fitted p(t)"]),
        (lambda d: Noise("mirror", mask_id=5, p_of_t=DENSITY), ["expected no p_of_t for 'mirror'"]),
        (lambda d: Noise("ppots", mask_id=5, p_of_t=saved(d / "p.json", "ppots+mirror")), ["p.json", "ppots+mirror"]),
        (lambda d: Noise("ppots", mask_id=5, p_of_t=saved(d / "p.json", "ppots", objective={"eps": 0.5})),
         ["p.json", "objective.eps=0.001", "found 0.5"]),
        (lambda d: draw(Noise("standard", mask_id=5)), ["row 1", "maskable"]),
        (lambda d: whole(Noise("standard", mask_id=5), step_rows=9), ["positions and step_rows together"]),
        (lambda d: whole(Noise("isad", mask_id=5)), ["'isad'", "delimiter"]),
        (lambda d: whole(Noise("standard", mask_id=5, objective=Objective(normalization="token")),
                         positions=torch.arange(3), step_rows=6), ["step_weight"]),
    ],
)  # fmt: skip
def test_refusals(tmp_path, make, words):
    with pytest.raises(UserError) as refused:
        make(tmp_path)
    for word in words:
        assert word in str(refused.value), refused.value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_losses_are_summed_in_float32(dtype):
    """1 + 1/128 times 500 tokens is not 500 times what bfloat16 keeps of it, summed in bfloat16."""
    ids = torch.arange(500)[None] % 50
    noise = Noise("standard", mask_id=99).draw(ids, torch.ones_like(ids, dtype=torch.bool), step=1)
    nll = torch.full((int(noise.mask.sum()),), 1.0078125).to(dtype)
    loss = noise.loss_of(nll)
    torch.testing.assert_close(loss, noise.loss_of(nll.float()), rtol=0, atol=0)
