"""Plug points for other trainers: the published mean, less noise, and one step however its rows are split."""

from __future__ import annotations

import doctest
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import stabledllm.integrations.collator as collator_module
import stabledllm.integrations.step as step_module
from stabledllm.errors import UserError
from stabledllm.integrations import (
    AutomodelNoise,
    DllmNoise,
    DreamNoise,
    Noise,
    NoisyCollator,
    SFTNoise,
    step_positions,
    weighted_loss,
)
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.objective import Objective
from tests.checks.statistics import Z
from tests.cli.forked import Forked, ranks
from tests.fakes import plugs
from tests.fakes.plugs import MASK, Guess, batch_of

DENSITY = Tabulated((1.0, 1.5, 2.0, 1.2))
METHODS = ["standard", "lowdisc+ppots", "lowdisc+fixedcount", "mirror", "strats+ppots+mirror", "lowdisc+complement"]


def fitted(method: str):
    return DENSITY if "ppots" in method else None


def splits() -> list[list[list[torch.Tensor]]]:
    """Rows by rank and micro-batch: 8 x 1, 4 x 2, and two ranks with 4 rows each, in 1 and 2 micro-batches."""
    rows = torch.arange(8)
    return [[[rows]], [[rows[:4], rows[4:]]], [[rows[:4]], [rows[4:]]], [[rows[:2], rows[4:6]], [rows[2:4], rows[6:]]]]


def part(batch: dict, rows) -> dict:
    return {name: value[rows].clone() for name, value in batch.items()}


# -- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", splits())
def test_every_row_of_a_step_has_one_position_however_it_is_split(split):
    for rank, micro_batches in enumerate(split):
        positions, step_rows = step_positions([len(m) for m in micro_batches], rank=rank, ranks=len(split))
        assert step_rows == 8
        assert torch.equal(torch.cat(positions), torch.cat(micro_batches))


def test_a_strided_sampler_deals_row_by_row():
    taken = [torch.cat(step_positions([2, 1], rank=r, ranks=3, strided=True)[0]) for r in range(3)]
    assert torch.stack(taken).T.flatten().tolist() == list(range(9))


@pytest.mark.parametrize("ranks", [{"rank": 0}, {"rank": 2, "ranks": 2}])
def test_wrong_ranks_are_refused(ranks):
    with pytest.raises(UserError, match="step_positions: expected"):
        step_positions([1], **ranks)


# -- dllm -----------------------------------------------------------------------------------------------------------


def dllm(base=plugs.MDLMTrainer, method="standard", **changed):
    args = SimpleNamespace(
        time_epsilon=0.1, loss_weight_type="scheduler", loss_norm_type="token", right_shift_logits=False, seed=3,
        block_size=2,
    )  # fmt: skip
    args.__dict__.update(changed)
    return type("Trainer", (DllmNoise, base), {})(args, method=method, p_of_t=fitted(method))


def in_step(trainer, model, batches: list[dict], step: int) -> list[torch.Tensor]:
    trainer.state.global_step = step
    handed, _ = trainer.get_batch_samples(iter(batches), len(batches), "cpu")
    return [trainer.compute_loss(model, batch) for batch in handed]


@torch.no_grad()
def two_samples(trainer, model, n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the published trainer and of the mixin over steps."""
    batch = batch_of()
    torch.manual_seed(0)
    published = [super(DllmNoise, trainer).compute_loss(model, dict(batch)) for _ in range(n)]
    ours = [in_step(trainer, model, [dict(batch)], step)[0] for step in range(n)]
    return torch.stack(published), torch.stack(ours)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("method", "norm"),
    [*((method, "token") for method in METHODS), ("lowdisc+fixedcount", "sequence"), ("lowdisc+fixedcount", "batch")],
)
def test_dllm_has_the_published_mean(method, norm):
    published, ours = two_samples(dllm(method=method, loss_norm_type=norm), Guess())
    error = ((published.var() + ours.var()) / len(ours)).sqrt()
    assert abs(published.mean() - ours.mean()) <= Z * error
    if method == "lowdisc+fixedcount":
        assert ours.var() < 0.5 * published.var()


@pytest.mark.statistical
def test_dllm_standard_has_the_published_variance():
    published, ours = two_samples(dllm(), Guess(), n=1500)
    spread = [float(((x - x.mean()) ** 2).std() / len(x) ** 0.5) for x in (published, ours)]
    assert abs(published.var() - ours.var()) <= Z * (spread[0] ** 2 + spread[1] ** 2) ** 0.5


@pytest.mark.statistical
@pytest.mark.parametrize("changed", [{"loss_weight_type": "uniform"}, {"right_shift_logits": True}])
def test_dllm_settings_keep_their_meaning(changed):
    published, ours = two_samples(dllm(method="lowdisc+fixedcount", **changed), Guess())
    assert abs(published.mean() - ours.mean()) <= Z * ((published.var() + ours.var()) / len(ours)).sqrt()
    plain = two_samples(dllm(method="lowdisc+fixedcount"), Guess())[1]
    assert abs(plain.mean() - ours.mean()) > Z * ((plain.var() + ours.var()) / len(ours)).sqrt(), "it has an effect"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("split", splits()[:2])
def test_dllm_draws_one_step_whatever_its_micro_batches(method, split):
    trainer, batch, model = dllm(method=method), batch_of(), Guess()
    in_step(trainer, model, [batch], 5)
    whole = trainer.noise.draw(batch["input_ids"], batch["labels"] != -100, 5)
    model.shown.clear()
    in_step(trainer, model, [part(batch, rows) for rows in split[0]], 5)
    assert torch.equal(torch.cat([ids for ids, _, _ in model.shown]), whole.input_ids)
    attention = torch.cat([mask for _, mask, _ in model.shown])
    assert torch.equal(attention, batch["attention_mask"][whole.source])


@pytest.mark.statistical
@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_dllm_counts_a_row_without_labels_as_0(norm):
    """A prompt that was cut leaves such rows; dllm's mean is over them too, and training goes on."""
    trainer, model, batch = dllm(method="lowdisc+fixedcount", loss_norm_type=norm), Guess(), batch_of()
    batch["labels"][[1, 6]] = -100
    torch.manual_seed(0)
    published = torch.stack([plugs.MDLMTrainer.compute_loss(trainer, model, batch).detach() for _ in range(400)])
    ours = torch.stack([in_step(trainer, model, [dict(batch)], step)[0].detach() for step in range(400)])
    assert abs(published.mean() - ours.mean()) <= Z * ((published.var() + ours.var()) / 400) ** 0.5
    batch["labels"][:] = -100
    (loss,) = in_step(trainer, model, [dict(batch)], 0)
    assert float(loss.detach()) == 0


def test_dllm_in_blocks_shows_noisy_and_clean_under_the_attention_of_blocks():
    trainer, batch, model = dllm(plugs.BD3LMTrainer, "mirror"), batch_of(4, length=6), Guess()
    (loss,) = in_step(trainer, model, [dict(batch)], 1)
    ids, seen, places = model.shown[0]
    taken = trainer.noise.draw(batch["input_ids"], batch["labels"] != -100, 1)
    assert torch.equal(ids, torch.cat((taken.input_ids, taken.targets), 1))
    assert places.tolist() == [[0, 1, 2, 3, 4, 5] * 2] * 8
    for q in range(12):
        for k in range(12):
            noisy_q, noisy_k, own, other = q < 6, k < 6, q % 6 // 2, k % 6 // 2
            expected = (own == other if noisy_k else other < own) if noisy_q else (not noisy_k and other <= own)
            assert bool(seen[0, 0, q, k]) == expected, (q, k)
    assert loss > 0


def test_dllm_tells_its_metric_the_weighted_losses():
    trainer, model = dllm(method="mirror"), Guess()
    (loss,) = in_step(trainer, model, [batch_of()], 2)
    ((split, value, weight),) = trainer.meter.seen
    assert split == "train"
    torch.testing.assert_close(value.sum() / weight.sum(), loss.detach())


def test_dllm_evaluates_as_published():
    trainer, model = dllm(method="mirror"), Guess().eval()
    torch.manual_seed(4)
    found = trainer.compute_loss(model, batch_of())
    torch.manual_seed(4)
    assert torch.equal(found, plugs.MDLMTrainer.compute_loss(trainer, model, batch_of()))


# -- NeMo Automodel -------------------------------------------------------------------------------------------------


def automodel(method="standard", base=plugs.MDLMStrategy, **recipe):
    strategy = type("Less", (AutomodelNoise, base), {})()
    strategy.create_loss_fn({"method": method, "p_of_t": fitted(method), "noise_seed": 7})
    recipe = plugs.automodel_recipe(step=4, **recipe)
    strategy.setup_extra(recipe)
    return strategy, recipe


def supervised(batch: dict) -> dict:
    return {"input_ids": batch["input_ids"], "loss_mask": (batch["labels"] != -100).float()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_automodel_loss_is_the_steps_token_mean(method, accumulation):
    """Its loss is sum(CE / p_mask) over the noisy tokens, by the supervised tokens of the step."""
    strategy, recipe = automodel(method)
    batch, model = supervised(batch_of()), Guess()
    batches = [part(batch, rows) for rows in torch.arange(8).chunk(accumulation)]
    _, tokens = strategy.pre_step(recipe, batches)
    assert tokens == int(batch["loss_mask"].sum())
    total = 0.0
    for one in batches:
        assert len(one["loss_mask"]) == len(one["_noisy_input_ids"]) == len(one["input_ids"])
        logits = model(one["_noisy_input_ids"]).logits
        nll = F.cross_entropy(logits.transpose(1, 2), one["_clean_input_ids"], reduction="none")
        total += float((nll.detach() * one["_noise_mask"] / one["_p_mask"].clamp(min=1e-8)).sum() / tokens)
    noise = Noise(
        method, mask_id=MASK, p_of_t=fitted(method), seed=7, objective=Objective(normalization="token", eps=0.1)
    )
    taken = noise.draw(batch["input_ids"], batch["loss_mask"].bool(), 4)
    assert total == pytest.approx(float(taken.loss(model(taken.input_ids).logits).detach()), rel=1e-6)


def with_cut_rows(batch: dict, rows) -> dict:
    """The batch, in which these rows have nothing to train on, as where a prompt fills the whole row."""
    labels = batch["labels"].clone()
    labels[rows] = -100
    return batch | {"labels": labels}


@pytest.mark.parametrize("method", METHODS)
def test_automodel_counts_a_row_without_supervised_tokens_as_0(method):
    """Row 2 of a micro-batch, and all rows of another: the rest of the step is as without them."""
    (strategy, recipe), model = automodel(method), Guess()
    batch = supervised(with_cut_rows(batch_of(), [2, 6, 7]))
    batches = [part(batch, rows) for rows in (slice(0, 6), slice(6, 8))]
    _, tokens = strategy.pre_step(recipe, batches)
    assert tokens == int(batch["loss_mask"].sum())
    assert not batches[1]["_noise_mask"].any()
    assert torch.equal(batches[1]["_noisy_input_ids"], batch["input_ids"][6:])
    rows = torch.tensor([0, 1, 3, 4, 5])
    taken = strategy.noise.draw(
        batch["input_ids"][rows], batch["loss_mask"][rows].bool(), 4, positions=rows, step_rows=8, step_weight=1.0
    )
    assert torch.equal(batches[0]["_noisy_input_ids"], taken.input_ids)
    assert torch.equal(batches[0]["loss_mask"], batch["loss_mask"][rows][taken.source])
    logits = model(taken.input_ids).logits
    nll = F.cross_entropy(logits.transpose(1, 2), taken.targets, reduction="none").detach()
    found = float((nll * batches[0]["_noise_mask"] / batches[0]["_p_mask"]).sum())
    assert found == pytest.approx(float(taken.loss(logits).detach()), rel=1e-6)


def test_automodel_p_mask_is_the_mask_probability_times_the_density():
    strategy, recipe = automodel("ppots")
    batch = supervised(batch_of())
    strategy.pre_step(recipe, [batch])
    taken = strategy.noise.draw(batch["_clean_input_ids"], batch["loss_mask"].bool(), 4)
    expected = (0.1 + 0.9 * taken.draw.t) * DENSITY.log_prob(taken.draw.t).exp()
    rows = batch["_noise_mask"].nonzero()[:, 0]
    torch.testing.assert_close(batch["_p_mask"][batch["_noise_mask"]].double(), expected[rows], rtol=1e-5, atol=0)


def test_automodel_draws_one_step_over_two_ranks(monkeypatch):
    """Its sampler deals row by row."""
    batch, (alone, recipe) = supervised(batch_of()), automodel("lowdisc+ppots")
    whole = part(batch, slice(None))
    alone.pre_step(recipe, [whole])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in range(2):
        strategy, recipe = automodel("lowdisc+ppots", rank=rank, ranks=2)
        halves = [part(batch, rows) for rows in torch.arange(8)[rank::2].chunk(2)]
        strategy.pre_step(recipe, halves)
        for name in ("_noisy_input_ids", "_p_mask"):
            assert torch.equal(torch.cat([half[name] for half in halves]), whole[name][rank::2])


def test_automodel_validates_as_published():
    strategy, recipe = automodel("mirror")
    recipe.model_parts[0].eval()
    assert strategy.pre_step(recipe, [supervised(batch_of())]) == (-1, -1)


def test_automodels_own_strategy_and_loss():
    """The real package, where it is installed."""
    theirs = pytest.importorskip("nemo_automodel.recipes.dllm.strategy")
    strategy, recipe = automodel("lowdisc+ppots", theirs.MDLMStrategy)
    loss_fn, batch, model = strategy.create_loss_fn({"method": "lowdisc+ppots"}), supervised(batch_of()), Guess()
    _, tokens = strategy.pre_step(recipe, [batch])
    out = loss_fn(
        logits=model(batch["_noisy_input_ids"]).logits, target_ids=batch["_clean_input_ids"],
        noise_mask=batch["_noise_mask"], p_mask=batch["_p_mask"], loss_mask=batch["loss_mask"],
        num_diffusion_tokens=tokens,
    )  # fmt: skip
    taken = strategy.noise.draw(batch["_clean_input_ids"], batch["loss_mask"].bool(), 4)
    expected = float(taken.loss(model(taken.input_ids).logits).detach())
    assert float(out.total_loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert (
        strategy.prepare_batch(batch, batch["_noisy_input_ids"], None, None)["input_ids"] is batch["_noisy_input_ids"]
    )


# -- Dream-Coder ----------------------------------------------------------------------------------------------------


def dream_step(noise: DreamNoise, batch: dict, split, step=0, **more):
    noisy, mask = torch.zeros_like(batch["input_ids"]), torch.zeros(batch["input_ids"].shape).bool()
    t = torch.zeros(8)
    for rank, micro_batches in enumerate(split):
        noise.start(step, [len(m) for m in micro_batches], rank=rank, ranks=len(split))
        for rows in micro_batches:
            noisy[rows], t[rows], mask[rows] = noise.q_sample(
                batch["input_ids"][rows], batch["labels"][rows] != -100, MASK, **more
            )
    return noisy, t, mask


@pytest.mark.parametrize("method", ["standard", "lowdisc+ppots", "lowdisc+fixedcount"])
def test_dream_has_the_token_mean_and_one_step_however_it_is_split(method):
    noise = DreamNoise(method, p_of_t=fitted(method), seed=2, eps=0.1, strided=False)
    batch, model = batch_of(), Guess()
    noisy, t, mask = dream_step(noise, batch, splits()[0])
    for split in splits()[1:]:
        assert all(torch.equal(a, b) for a, b in zip(dream_step(noise, batch, split), (noisy, t, mask), strict=True))
    maskable = batch["labels"] != -100
    nll = F.cross_entropy(model(noisy).logits.transpose(1, 2), batch["input_ids"], reduction="none")
    loss = (nll.detach() * mask / t[:, None]).sum() / maskable.sum()
    objective = Objective(normalization="token", eps=0.1)
    taken = Noise(method, mask_id=MASK, p_of_t=fitted(method), seed=2, objective=objective).draw(
        batch["input_ids"], maskable, 0
    )
    assert float(loss) == pytest.approx(float(taken.loss(model(taken.input_ids).logits).detach()), rel=1e-6)


def test_dream_masks_the_closing_end_tokens_together():
    batch = batch_of()
    batch["labels"] = batch["input_ids"].clone()
    batch["input_ids"] = batch["input_ids"] % 8
    batch["input_ids"][:, -3:] = 8
    seen = set()
    for step in range(8):
        _, _, mask = dream_step(DreamNoise(strided=False), batch, splits()[0], step, eos_token_id=8)
        closing = mask[:, -3:]
        assert torch.equal(closing.any(1), closing.all(1))
        seen |= set(closing.any(1).tolist())
    assert seen == {True, False}


# -- collators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", ["labels", "completion_mask"])
def test_the_collators_weights_add_up_to_the_steps_mean(method, key):
    batch, model = batch_of(), Guess()
    given = dict(batch)
    if key == "completion_mask":
        given[key] = (given.pop("labels") != -100).long()
    noise = Noise(method, mask_id=MASK, p_of_t=fitted(method), seed=5)
    taken = noise.draw(batch["input_ids"], batch["labels"] != -100, 3)
    expected = float(taken.loss(model(taken.input_ids).logits).detach())
    for split in splits():
        total = 0.0
        for rank, micro_batches in enumerate(split):
            collator = NoisyCollator(
                lambda rows: part(given, rows), noise, rows=len(micro_batches[0]), accumulation=len(micro_batches),
                rank=rank, ranks=len(split), strided=False,
            )  # fmt: skip
            collator.start(3)
            for rows in micro_batches:
                noisy = collator(rows)
                total += float(weighted_loss(model(noisy["input_ids"]).logits, noisy).detach())
        assert total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_collator_counts_a_row_without_labels_as_0(method):
    batch, model = with_cut_rows(batch_of(), [1, 4]), Guess()
    noise = Noise(method, mask_id=MASK, p_of_t=fitted(method), seed=5)
    noisy = NoisyCollator(lambda _: dict(batch), noise, rows=8)(None)
    rows = torch.tensor([0, 2, 3, 5, 6, 7])
    taken = noise.draw(batch["input_ids"][rows], batch["labels"][rows] != -100, 0, positions=rows, step_rows=8)
    assert torch.equal(noisy["input_ids"], taken.input_ids)
    assert float(weighted_loss(model(noisy["input_ids"]).logits, noisy).detach()) == pytest.approx(
        float(taken.loss(model(taken.input_ids).logits).detach()), rel=1e-6
    )


def test_a_batch_with_nothing_to_train_on_has_a_loss_of_0_and_its_backward():
    batch, model = with_cut_rows(batch_of(2), [0, 1]), Guess()
    noisy = NoisyCollator(lambda _: dict(batch), Noise("lowdisc+mirror", mask_id=MASK), rows=2)(None)
    loss = weighted_loss(model(noisy["input_ids"]).logits, noisy)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not model.table.grad.any()


def test_a_smaller_last_batch_that_is_the_step_is_a_mean_over_its_own_rows():
    batch, model, noise = batch_of(3), Guess(), Noise("lowdisc+mirror", mask_id=MASK)
    noisy = NoisyCollator(lambda _: dict(batch), noise, rows=8)(None)
    taken = noise.draw(batch["input_ids"], batch["labels"] != -100, 0)
    assert float(weighted_loss(model(noisy["input_ids"]).logits, noisy).detach()) == pytest.approx(
        float(taken.loss(model(taken.input_ids).logits).detach()), rel=1e-6
    )


def test_around_trls_own_collator():
    """The real package, where it is installed."""
    theirs = pytest.importorskip("trl.trainer.sft_trainer").DataCollatorForLanguageModeling
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    noise = Noise("lowdisc+mirror", mask_id=MASK)
    noisy = NoisyCollator(theirs(pad_token_id=0), noise, rows=2)(rows)
    taken = noise.draw(theirs(pad_token_id=0)(rows)["input_ids"], torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]]).bool(), 0)
    assert torch.equal(noisy["input_ids"], taken.input_ids)
    assert noisy["attention_mask"].sum(1).tolist() == [4, 4, 2, 2]
    with pytest.raises(UserError, match="padding_free=False"):
        NoisyCollator(theirs(pad_token_id=0, padding_free=True), noise, rows=2)(rows)


def test_sft_noise_is_a_part_of_the_step():
    class Trainer(SFTNoise, plugs.Loop):
        pass

    noise, batch, model = Noise("lowdisc+mirror", mask_id=MASK), batch_of(), Guess()
    trainer = Trainer(SimpleNamespace(world_size=1), noise=noise)
    losses = in_step(trainer, model, [part(batch, rows) for rows in torch.arange(8).split(3)], 6)
    taken = noise.draw(batch["input_ids"], batch["labels"] != -100, 6)
    assert float(sum(losses).detach()) == pytest.approx(
        float(taken.loss(model(taken.input_ids).logits).detach()), rel=1e-6
    )


def test_the_examples_in_docstrings_hold():
    for module in (step_module, collator_module):
        assert doctest.testmod(module).failed == 0
    assert doctest.testmod(step_module).attempted == 2


# -- refusals -------------------------------------------------------------------------------------------------------


def q_sample(noise=None, **more):
    ids = torch.zeros(2, 3).long()
    return (noise or DreamNoise()).q_sample(ids, torch.ones(2, 3).bool(), MASK, **more)


def started(sizes):
    noise = DreamNoise()
    noise.start(0, sizes)
    return noise


def from_worker():
    batch = batch_of()
    collator = NoisyCollator(lambda rows: part(batch, rows), Noise(mask_id=MASK), rows=2)
    return list(torch.utils.data.DataLoader(range(8), batch_size=2, num_workers=1, collate_fn=collator))


class NoMask(plugs.MDLMTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.processing_class.mask_token_id = None


class ByNoise(plugs.MDLMStrategy):
    normalization_mode = "noise"


def collated(batch, noise=None, rows=8):
    return NoisyCollator(lambda _: batch, noise or Noise(mask_id=MASK), rows=rows)(None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dllm(loss_weight_type="cart"), ["loss_weight_type", "scheduler, uniform", "'cart'"]),
        (lambda: dllm(NoMask), ["mask token"]),
        (lambda: dllm(loss_norm_type="row"), ["loss_norm_type", "'row'"]),
        (lambda: dllm(method="adaptive"), ["without 'adaptive'"]),
        (lambda: dllm().compute_loss(Guess(), batch_of()), ["batch of the training loop", "Noise.draw"]),
        (lambda: type("T", (DllmNoise, plugs.MDLMTrainer), {})(dllm().args, scheduler=object()), ["no scheduler"]),
        (lambda: type("T", (DllmNoise, plugs.MDLMTrainer), {})(dllm().args, object()), ["no scheduler"]),
        (lambda: dllm(method="ppots+mirrored"), ["unknown part 'mirrored'"]),
        (lambda: automodel("ema"), ["without 'ema'"]),
        (lambda: automodel(base=ByNoise), ["supervised", "noise"]),
        (lambda: DreamNoise("mirror"), ["one view", "'mirror'"]),
        (lambda: DreamNoise("isad"), ["isad"]),
        (lambda: DreamNoise("ppots", p_of_t=DENSITY, time_reweighting="cart"), ["'cart'", "'original'"]),
        (lambda: DreamNoise(time_reweighting="other"), ["original, linear, cart, none"]),
        (q_sample, ["DreamNoise.start"]),
        (lambda: q_sample(started([3])), ["3 rows", "found 2"]),
        (lambda: q_sample(started([2]), t=torch.ones(2)), ["no min, max, t or t_mask"]),
        (lambda: started([1]).q_sample(torch.tensor([[1, MASK]]), torch.ones(1, 2).bool(), MASK), ["mask token 9"]),
        (lambda: started([2]).start(1, [2]), ["1 more times"]),
        (lambda: collated({"input_ids": torch.zeros(1, 2).long()}), ["labels or completion_mask", "input_ids"]),
        (lambda: collated({"input_ids": torch.zeros(1, 2).long(), "position_ids": 0}), ["padding_free=False"]),
        (lambda: collated(batch_of(), Noise(mask_id=MASK, objective=Objective(normalization="token"))), ["row"]),
        (lambda: collated(batch_of(), rows=2), ["rows=2", "found 8"]),
    ],
)  # fmt: skip
def test_refusals(make, words):
    with pytest.raises(UserError) as refused:
        make()
    for word in words:
        assert word in str(refused.value), refused.value


@pytest.mark.processes
def test_a_worker_cannot_know_the_step():
    with pytest.raises(UserError, match="num_workers=0"):
        from_worker()


def _one_of_two_ranks() -> None:
    dist.init_process_group("gloo")
    model, rows = Guess(), torch.arange(8).split(2)[dist.get_rank() :: 2]
    in_step(dllm(method="lowdisc+mirror"), model, [part(batch_of(), r) for r in rows], 5)
    torch.save([ids for ids, *_ in model.shown], f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


@pytest.mark.processes
def test_two_ranks_of_torch_distributed_draw_one_step(tmp_path):
    """Micro-batch i of rank r is the step's (2 i + r)-th, and both ranks exchange their sizes."""
    started = ranks(lambda launched: Forked(_one_of_two_ranks, tmp_path, launched))
    assert [process.ended().returncode for process in started] == [0, 0]
    by_rank = [torch.load(tmp_path / f"{r}.pt") for r in range(2)]
    batch, trainer = batch_of(), dllm(method="lowdisc+mirror")
    whole = trainer.noise.draw(batch["input_ids"], batch["labels"] != -100, 5)
    shown = [by_rank[r][i] for i in range(2) for r in range(2)]
    assert torch.equal(torch.cat(shown), whole.input_ids)
