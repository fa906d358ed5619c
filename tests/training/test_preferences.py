"""Training on pairs: one trajectory however a step is split, resumed bit for bit, and the same under each reference."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import PrinterCallback, TrainingArguments

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.noise.methods import Method
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.reference import AdapterOff, FrozenCopy, KeptValues, values_of
from stabledllm.training.devices import refuse_sharding_in_parts
from stabledllm.training.equal_passes import EqualPasses
from stabledllm.training.preferences import EVAL_SEED, DPOTrainer, PairStatistics
from tests.cli.forked import Forked, ranks
from tests.fakes import tiny

SEED, BETA = 11, 0.1


def pairs() -> list[Pair]:
    """The responses of 22 rows, each beside one of as many times the same token: what to prefer is soon learnt."""
    rows = [(row, list(row.input_ids[: row.prompt_length])) for row in tiny.rows(22)]
    return [Pair(row, TokenRow(prompt + [7] * row.response_length, row.prompt_length)) for row, prompt in rows]


PAIRS = pairs()
HOW = BoundEstimator(budget=4, tokens_per_batch=200)


class Recording(DPOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        step = self.state.global_step
        self.recorded[step] = self.recorded.get(step, 0.0) + loss.item() / self.args.world_size
        return loss


def make(
    out,
    *,
    micro=8,
    accumulation=1,
    steps=4,
    model=None,
    reference=FrozenCopy,
    loss=None,
    how=HOW,
    makes=None,
    **arguments,
):
    model = model if model is not None else tiny.model(32)
    makes = makes or (lambda trainer: reference(trainer.model))
    trainer = Recording(
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            max_steps=steps,
            learning_rate=arguments.pop("learning_rate", 1e-3),
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            save_strategy=arguments.pop("save_strategy", "no"),
            restore_callback_states_from_checkpoint=True,
            dataloader_pin_memory=False,
            seed=3,
            **arguments,
        ),
        train_rows=[p.chosen for p in PAIRS],
        rejected=[p.rejected for p in PAIRS],
        eval_rows=[p.chosen for p in PAIRS[:6]],
        eval_rejected=[p.rejected for p in PAIRS[:6]],
        loss=loss or DPOLoss(BETA),
        estimator=how,
        reference=makes,
        method=Method.parse("lowdisc+fixedcount"),
        sampler=Method.parse("standard").sampler(None),
        mask_id=256,
        pad_id=257,
        noise_seed=SEED,
        statistics=PairStatistics(),
        identity={"method": "dpo"},
    )
    trainer.recorded = {}
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(*args, **kwargs):
    trainer = make(*args, **kwargs)
    trainer.train()
    return trainer


def losses(trainer) -> list[float]:
    return list(trainer.recorded.values())


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("dpo") / "8x1")


@pytest.mark.parametrize(("micro", "accumulation"), [(4, 2), (2, 4)])
def test_splitting_a_step_changes_nothing(tmp_path, whole, micro, accumulation):
    split = run(tmp_path, micro=micro, accumulation=accumulation)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-9)
    for name in ("rewards/margins", "rewards/accuracies", "loss_bias"):
        assert logged(split, name) == pytest.approx(logged(whole, name), rel=1e-8)


@pytest.mark.processes
def test_two_ranks_take_the_same_steps(tmp_path, whole):
    """Two gloo processes of 4 pairs; of 22 pairs a rank repeats some, which must weigh nothing."""
    from tests.training import rank_pairs

    for process in ranks(lambda launched: Forked(lambda: rank_pairs.main(tmp_path), tmp_path, launched)):
        ended = process.ended()
        assert ended.returncode == 0, ended.stderr[-2000:]
    records = [json.loads((tmp_path / f"rank{number}.json").read_text()) for number in range(2)]
    both = [a + b for a, b in zip(*(record["losses"] for record in records), strict=True)]
    assert both == pytest.approx(losses(whole), rel=1e-9)
    assert records[0]["margins"] == pytest.approx(logged(whole, "rewards/margins"), rel=1e-8)


def test_it_learns_to_prefer(tmp_path):
    trainer = make(tmp_path, steps=6, loss=DPOLoss(BETA, "jackknife"))
    before = trainer.pair_metrics()
    trainer.train()
    after = trainer.pair_metrics()
    assert before["preference_margin"].value == 0, "policy and reference are the same model"
    assert before["preference_accuracy"].value == 0.5
    assert after["preference_loss"].value < 0.9 * before["preference_loss"].value
    assert after["preference_accuracy"].value > 0.8
    assert logged(trainer, "rewards/margins")[-1] > 0


def test_a_killed_run_continues_with_the_same_bits(tmp_path, whole):
    run(tmp_path, save_strategy="steps", save_steps=2)
    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == losses(whole)[2:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    assert resumed.statistics.forward_passes == whole.statistics.forward_passes == (2 + 1) * 2 * 4 * (8 + 8 + 6 + 8)


def test_kept_values_are_the_frozen_copys(tmp_path, whole):
    """Into the second epoch of three steps; the model is asked before its first step, and no copy is there later."""

    def kept(model):
        table = torch.stack([values_of(model, PAIRS, HOW, seed=SEED, epoch=epoch) for epoch in range(2)])
        return KeptValues(table, values_of(model, PAIRS[:6], HOW, seed=EVAL_SEED))

    found = run(tmp_path, reference=kept)
    assert losses(found) == pytest.approx(losses(whole), rel=1e-9)
    assert found.statistics.forward_passes == whole.statistics.forward_passes * 2 // 3
    of_both = [trainer.pair_metrics()["preference_margin"].value for trainer in (found, whole)]
    assert of_both[0] == pytest.approx(of_both[1], rel=1e-9)
    too_short = KeptValues(torch.zeros(1, 22, 2, 2))
    with pytest.raises(UserError, match="expected values of epoch 2, found those of 1 epochs"):
        too_short.values(found.model, None, [0], 1)


def test_an_adapter_that_is_switched_off_is_the_reference(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted():
        torch.manual_seed(5)
        return peft.get_peft_model(
            tiny.model(32), peft.LoraConfig(r=4, target_modules=["qkv_proj"], lora_dropout=0.0)
        ).double()

    off = run(tmp_path / "off", model=adapted(), reference=AdapterOff)
    copy = run(tmp_path / "copy", model=adapted(), reference=FrozenCopy)
    assert losses(off) == pytest.approx(losses(copy), rel=1e-9)
    assert abs(logged(off, "rewards/margins")[-1]) > 0
    with pytest.raises(UserError, match="expected a model with an adapter for 'adapter', found none"):
        AdapterOff(tiny.model(32))


def test_a_bias_that_is_not_known_is_not_logged(tmp_path, whole):
    one = run(tmp_path, how=BoundEstimator(budget=1), steps=1)
    assert logged(one, "rewards/margins")
    assert not logged(one, "loss_bias")
    assert logged(whole, "loss_bias")


def test_epochs_have_noise_of_their_own_and_seeds_too(tmp_path, whole):
    draws = {
        (seed, epoch): HOW.draw(whole.model, PAIRS[:2], [0, 1], seed=seed, step=epoch).values(whole.model)
        for seed in (SEED, SEED + 1)
        for epoch in (0, 1)
    }
    seen = list(draws.values())
    assert all(not torch.allclose(a, b) for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize(
    ("version", "deepspeed", "words"), [(1, False, "found FSDP version 1"), (None, True, "found DeepSpeed")]
)
def test_other_sharding_than_fsdp2_is_refused(version, deepspeed, words):
    for whole in (None, 2):
        refuse_sharding_in_parts("dpo", fsdp_version=whole, deepspeed=False)
    with pytest.raises(UserError, match=f"objective.kind=dpo: expected whole weights .* or FSDP version 2, {words}"):
        refuse_sharding_in_parts("dpo", fsdp_version=version, deepspeed=deepspeed)


def test_added_passes_change_nothing():
    """A rank with fewer passes makes as many as the others: the model runs, values and gradients stay."""
    model, calls = tiny.model(32), []
    model.register_forward_hook(lambda *_: calls.append(1))
    draws = HOW.draw(model, PAIRS[:3], range(3), seed=SEED)
    equal = EqualPasses(draws, draws.passes + 3)
    values = draws.values(model)
    calls.clear()
    assert torch.equal(equal.values(model), values)
    assert len(calls) == equal.passes
    slopes = torch.randn(values.shape, dtype=values.dtype)
    gradients = []
    for each in (draws, equal):
        model.zero_grad()
        parts = list(each.parts(model, slopes))
        assert len(parts) == each.passes
        for part in parts:
            part.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert torch.equal(equal.tokens, draws.tokens)


@pytest.mark.parametrize("reference", ["copy", "adapter", "kept"])
def test_rounding_is_shared_under_mixed_precision(tmp_path, reference):
    """The Trainer computes the policy in bfloat16: any reference must be, or its rounding alone makes a margin."""
    peft = pytest.importorskip("peft")

    def kept(trainer):
        with trainer.accelerator.autocast():
            table = values_of(trainer.model, PAIRS, HOW, seed=SEED)
            return KeptValues(table[None], values_of(trainer.model, PAIRS[:6], HOW, seed=EVAL_SEED))

    model = tiny.model(32).float()
    if reference == "adapter":
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["qkv_proj"], lora_dropout=0.0))
    makes = {"copy": lambda t: FrozenCopy(t.model), "adapter": lambda t: AdapterOff(t.model), "kept": kept}
    trainer = make(tmp_path, model=model, steps=1, bf16=True, learning_rate=0.0, makes=makes[reference])
    trainer.train()
    slack = 5e-5 if reference == "kept" else 0.0  # its forwards hold other rows; without autocast it is 2e-4
    assert abs(logged(trainer, "rewards/margins")[0]) <= slack
    assert abs(trainer.pair_metrics()["preference_margin"].value) <= slack
    in_full = run(tmp_path / "full", model=tiny.model(32).float(), steps=1)
    values = [HOW.draw(t.model, PAIRS, range(22), seed=SEED).values(t.model) for t in (trainer, in_full)]
    assert not torch.equal(*values), "it was bfloat16"


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_a_step_takes_the_gradient_of_the_documented_loss(tmp_path, precision):
    """With everything on: adapters, jackknife, sft, checkpointed activations, in two micro-batches."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    model = peft.get_peft_model(
        tiny.model(32).float(), peft.LoraConfig(r=4, target_modules=["qkv_proj"], lora_dropout=0.5)
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p += 0.1 * torch.randn_like(p)
    loss, seen = DPOLoss(BETA, "jackknife", 0.3), {}
    trainer = make(
        tmp_path, micro=4, accumulation=2, steps=1, model=model, loss=loss, reference=AdapterOff,
        gradient_checkpointing=True, max_grad_norm=0.0, **precision,
    )  # fmt: skip
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    seen["order"] = []
    compute = trainer.compute_loss

    def watched(model, inputs, *args, **kwargs):
        seen["order"] += list(zip(inputs["numbers"], inputs["pairs"], strict=True))
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    trainer.optimizer = torch.optim.SGD(trained.values(), lr=0.0)
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: p.grad.clone() for name, p in trained.items()})
    )
    trainer.train()
    numbers, pairs_seen = zip(*seen.pop("order"), strict=True)
    model.eval()  # dropout has no part in the loss
    with trainer.accelerator.autocast():
        draws = HOW.draw(model, pairs_seen, numbers, seed=SEED)
        with torch.no_grad(), model.disable_adapter():
            reference = draws.values(model)
    joint = draws.plan.groups * sum(part for part, _ in draws.plan.run(model))
    value = loss(joint.unflatten(0, (2, -1)).transpose(0, 1), reference, draws.tokens).value.mean()
    assert losses(trainer)[0] == pytest.approx(value.item(), rel=2e-2 if precision else 1e-5)
    wanted = torch.autograd.grad(value, list(trained.values()))
    for (name, _), each in zip(trained.items(), wanted, strict=True):
        error = (seen[name] - each).norm() / each.norm()
        assert error < (0.03 if precision else 1e-4), name
