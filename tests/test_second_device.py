"""What runs on a GPU, on a device of the test's own: no tensor is left on the CPU, and the numbers are the CPU's.

The device (``tests/fakes/second_device.py``) refuses what CUDA refuses, so that a machine without a GPU finds it.
"""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from torch.utils._pytree import tree_leaves

from stabledllm.data.rows import TokenRow, collate
from stabledllm.decoding import DecodingOptions, generate
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.blocks import BlockMeter
from stabledllm.forward.elbo import elbo
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.gradient.sketch import ProjectedGradients
from stabledllm.integrations import (
    AlphaScheduler,
    AutomodelNoise,
    DreamNoise,
    Noise,
    NoisyCollator,
    weighted_loss,
)
from stabledllm.lab.own.lab import Lab
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.duel import duel
from stabledllm.likelihood.orders import OrderScores, log_mean, tangent
from stabledllm.models.adapters import LoRAOptions, add_lora
from stabledllm.models.families.annealing import Annealing
from stabledllm.models.loading import load_model
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.parts import PARTS
from stabledllm.noise.streams import Key
from stabledllm.policy.loss import GRPOLoss
from tests.cli.runner import ROOT
from tests.decoding.test_images import MASK, PROMPTS, ImageOptions, decode
from tests.fakes import plugs, tiny
from tests.fakes.hub_models import write_llama, write_mmada
from tests.fakes.second_device import SECOND, OnSecond, moved, second_device
from tests.fakes.trainer import DENSITY, make_trainer
from tests.integrations.test_plugs import dllm, in_step
from tests.models.families.cases import CASES
from tests.training.test_policy import make as policy_trainer

METHODS = (
    "strats+ppots+mirror", "lowdisc+adaptive+fixedcount", "adaptive+ema", "complement", "bell+partition3",
    "isad-exact+multisample", "clipped+isad+syrm",
)  # fmt: skip
"""Every part, in as few steps as hold them all; a test sees that none is missing."""
FAMILIES = ("llada", "dream", "llada-moe", "a2d-qwen3")
"""One of each that has code of its own."""
ROWS = [TokenRow([1 + i, 2, 3, *range(10, 15 + i)], 3) for i in range(6)]
SMALL = {"rows": 4, "rates": 3, "masks": 2, "steps": 4, "forwards": 4}
PROBE = {"rows": 4, "rates": 4, "masks": 2, "starts": 1}


def on_both(measure, make, stays: bool = False):
    """Measure on a model of the CPU and on one of the second device; returns the numbers of both and its waits.

    ``stays``: ``measure`` moves the model itself.
    """
    expected, model = measure(make(), torch.device("cpu")), make()
    with second_device() as device:
        found = measure(model if stays else moved(model), SECOND)
        found = [leaf.cpu() if isinstance(leaf, OnSecond) else leaf for leaf in tree_leaves(found)]
    return tree_leaves(expected), found, device.waits


def same(measure, make, **stays) -> None:
    expected, found, _ = on_both(measure, make, **stays)
    assert expected, "or nothing was measured"
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, torch.Tensor):  # sdpa takes another kernel for what does not say that it is on a CPU
            tolerance = 1e-4 if one.dtype == torch.float32 else 1e-9
            torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)
        else:
            assert other == (pytest.approx(one, rel=1e-5, nan_ok=True) if isinstance(one, float) else one)


def on(device, batch: dict) -> dict:
    """A batch on a device."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def one_step(tmp_path, model, device, method: str, rows, ids, **options):
    """A training step of two micro-batches, as the Trainer makes it: its loss, gradient, and what it logs."""
    trainer = make_trainer(tmp_path, method, model=model, train=rows, ids=ids, micro=3, accumulation=2, **options)
    if trainer.adaptive:
        trainer.sampler = trainer.statistics.follow(trainer.adaptive)
    collated = [trainer.data_collator([trainer.train_dataset[i, i] for i in part]) for part in (range(3), range(3, 6))]
    batches = [on(device, batch) for batch in collated]
    trainer._fix_positions(batches, device)
    if device == SECOND:  # not before: the Trainer takes its model to where this machine trains
        moved(model)
    model.train()
    losses = []
    for batch in batches:
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        losses.append(loss.detach())
    trainer.statistics.finish_step(lambda table: table, trainer.sampler)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    return losses, gradients, trainer.statistics.flush(), trainer.tokens_since_asked()


def step_of(tmp_path, method, make, rows, ids, **options) -> None:
    same(lambda model, device: one_step(tmp_path, model, device, method, rows, ids, **options), make, stays=True)


def small(**config):
    """A model of one layer: which of its tensors lies where does not depend on their sizes."""
    return tiny.model(8, layers=1, **config)


def test_every_part_of_a_method_is_trained_with():
    elsewhere = {"autoregressive"}  # of which there is a test below
    elsewhere |= {"ppots-gradient", "ppots-head"}  # whose step is that of ppots; the fits are measured below
    named = {named.part.name for method in METHODS for named in Method.parse(method).parts}
    assert named == set(PARTS) - elsewhere


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_of_every_method(tmp_path, method):
    step_of(tmp_path, method, small, tiny.rows(6), (tiny.MASK, tiny.PAD))


@pytest.mark.parametrize(
    "options",
    [
        {"packing": True},
        {"views_per_forward": 1},
        {"block_size": 4},
        {"block_size": 4, "one_t": True},
        {"objective": Objective(normalization="token")},
    ],
    ids=["packed", "one view at a time", "blocks", "blocks of one t", "token mean"],
)
def test_a_training_step_of_every_layout(tmp_path, options):
    step_of(tmp_path, "lowdisc+mirror", small, tiny.rows(6), (tiny.MASK, tiny.PAD), **options)


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("lowdisc+fixedcount", Objective(tokens="lift")),
        ("strats+mirror", Objective(tokens="gift")),
        ("complement", Objective("bell", tokens="cart")),
    ],
    ids=["lift", "gift", "bell and cart"],
)
def test_a_training_step_of_every_choice_of_tokens(tmp_path, method, objective):
    step_of(tmp_path, method, small, tiny.rows(6), (tiny.MASK, tiny.PAD), objective=objective)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: str(CASES[name].checkpoint(root / name)) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_of_every_family(tmp_path, folders, family):
    loaded = load_model(folders[family])
    ids, method = (loaded.mask_id, loaded.pad_id), "lowdisc+ppots+fixedcount+mirror"
    step_of(tmp_path, method, lambda: deepcopy(loaded.model), ROWS, ids, packing=family != "llada")


def steps_of_policy(out, model, device, ratio: str):
    """The two steps of a round of policy gradients, in two micro-batches: losses, gradient, and what they log."""
    how = BoundEstimator(budget=2, tokens_per_batch=60, of_tokens=ratio == "token")
    loss = GRPOLoss(ratio, mean="token" if ratio == "token" else "response")
    trainer = policy_trainer(out, micro=2, accumulation=2, model=model, how=how, loss=loss, reference=lambda _: None)
    if device == SECOND:
        moved(model)
    losses = []
    for step in range(2):
        trainer.state.global_step = step
        collated = [trainer.data_collator([trainer.train_dataset[i, i] for i in part]) for part in ((0, 1), (2, 3))]
        batches = [on(device, batch) for batch in collated]
        trainer._fix_positions(batches, device)
        for batch in batches:
            part = trainer.compute_loss(model, batch)
            part.backward()
            losses.append(part.detach())
        trainer.statistics.finish_step(lambda table: table, trainer.sampler)
    assert trainer.round.old
    return losses, [p.grad for p in model.parameters()], trainer.statistics.flush(), trainer.tokens_since_asked()


@pytest.mark.parametrize("ratio", ["mean", "token"])
def test_the_steps_of_a_round_of_policy_gradients(tmp_path, ratio):
    folders = iter("ab")
    same(lambda model, device: steps_of_policy(tmp_path / next(folders), model, device, ratio), small, stays=True)


def test_a_training_step_with_adapters_and_one_with_annealed_attention(tmp_path, folders):
    name = folders["a2d-qwen3"]
    loaded = load_model(name)
    ids = (loaded.mask_id, loaded.pad_id)

    def adapted():
        return add_lora(load_model(name), LoRAOptions(rank=2)).model

    def annealed():
        model = load_model(name).model
        model.annealing = Annealing(Key(3, 1), 0.5)
        return model

    for make in (adapted, annealed):
        step_of(tmp_path, "lowdisc+fixedcount", make, ROWS, ids)


def test_a_training_step_of_an_autoregressive_model(tmp_path):
    folder = write_llama(tmp_path / "llama")
    step_of(tmp_path, "autoregressive", lambda: load_model(str(folder)).model, ROWS, (None, 257))


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "prefix"}, {"threshold": 0.3}, {"order": "margin"}, {"temperature": 0.7, "top_p": 0.9},
        {"guidance": 1.0, "cache": "dual"}, {"schedule": "dream"},
        {"schedule": "origin", "order": "random", "temperature": 1.0},
        {"order": "entropy", "entropy_bound": 3.0}, {"order": "sequential"},
        {"logits_eos_inf": True, "confidence_eos_eot_inf": True},
    ],
    ids=str,
)  # fmt: skip
def test_decoding(options):
    chosen = DecodingOptions(length=4, steps=4, block=2, **options)

    def decoded(model, device):
        return generate(model, [[1, 2, 3], [4], [5, 6, 7, 8]], chosen, mask_id=tiny.MASK, eos_id=9, pad_id=tiny.PAD)

    same(decoded, lambda: small(initializer_range=0.5))


@pytest.mark.parametrize("family", ["dream", "llada-moe", "a2d-qwen3"])
def test_decoding_of_families(folders, family):
    options = DecodingOptions(length=4, steps=4, block=2, cache="none" if family == "llada-moe" else "dual")
    loaded = load_model(folders[family])
    special = {"mask_id": loaded.mask_id, "eos_id": loaded.eos_id, "pad_id": loaded.pad_id}
    same(
        lambda model, _: generate(model, [[1, 2, 3], [4]], options, **special),
        lambda: load_model(folders[family]).model,
    )


def test_decoding_in_blocks_from_left_to_right_and_of_images(tmp_path):
    options = DecodingOptions(length=4, steps=4, block=2, cache="prefix")
    special = {"mask_id": tiny.MASK, "eos_id": 9, "pad_id": tiny.PAD}
    same(lambda model, _: generate(model, [[1, 2], [3]], options, **special), lambda: small(block_size=2))
    folder = str(write_llama(tmp_path / "llama"))
    plain, special = DecodingOptions(length=4, steps=4, block=2), {"mask_id": None, "eos_id": 257, "pad_id": 257}
    same(lambda model, _: generate(model, [[1, 2], [3]], plain, **special), lambda: load_model(folder).model)
    images = str(write_mmada(tmp_path / "mmada", std=0.5))
    wanted = ImageOptions(steps=2, guidance=1.0)
    same(lambda model, _: decode(model, PROMPTS, wanted), lambda: load_model(images, torch.float64).model.eval())
    assert MASK


@pytest.mark.parametrize("block_size", [None, 2])
def test_likelihoods(block_size):
    options = DecodingOptions(length=4, steps=4, block=2, cache="prefix")
    special = {"mask_id": tiny.MASK, "pad_id": tiny.PAD, "ends": (9, 8)}

    def measured(model, _):
        guided = OrderScores.of(model, ROWS[:3], [0, 1, 2], seed=0, guidance=0.0 if block_size else 1.0)
        found = [guided.orders(range(2)), guided.merged(range(2), 2)]
        found += [] if block_size else [guided.counts(range(2), 2)]
        return duel(model, ROWS[:3], options, **special), log_mean(found[0]), tangent(found[0]), *found

    same(measured, lambda: small(block_size=block_size, initializer_range=0.5))


def lab(model) -> Lab:
    return Lab(model, tiny.rows(6), mask_id=tiny.MASK, pad_id=tiny.PAD, progress=False)


def losses(model, _):
    methods = ["ppots", "mirror", "lowdisc+fixedcount"]
    return lab(model).decompose(methods=methods, **SMALL, probe=PROBE).record["methods"]


def gradient(model, _):
    grad = {"rows": 4, "view_rows": 4, "rates": 2, "masks": 2, "steps": 4}
    return lab(model).decompose_gradient(methods=["mirror"], **SMALL, probe=PROBE, grad=grad).record["gradient"]


def projected(model, _):
    meter = ProjectedGradients(MeteredModel(model, tiny.MASK, tiny.PAD), tiny.rows(2), Objective(), places=64)
    row, t = torch.tensor([0, 1, 1]), torch.tensor([0.3, 0.6, 0.9]).double()
    found = list(meter.gradients(row, t, Method.parse("mirror"), Key(0, 0)))
    return [(batch.losses, batch.gradients) for batch in found]


def fitted(method: str):
    return lambda model, _: lab(model).fit(method, **PROBE).sampler.density


def bound(model, _):
    found = elbo(model, tiny.rows(3), "lowdisc+fixedcount", budget=8, mask_id=tiny.MASK, pad_id=tiny.PAD)
    found.value.sum().backward()
    return found.value.detach(), found.stderr, [p.grad for p in model.parameters()]


def evaluated(model, _):
    metered = MeteredModel(model, tiny.MASK, tiny.PAD)
    whole = LossMeter(metered, tiny.rows(4), Objective())
    return row_nll(whole), row_nll(BlockMeter(metered, tiny.rows(4), Objective(), block_size=4))


MEASURED = {
    "loss": losses, "gradient": gradient, "gradient, projected": projected, "elbo": bound, "evaluation": evaluated,
    **{name: fitted(name) for name in ("ppots-head", "ppots-gradient")},  # that of ppots is made for "loss"
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", MEASURED)
def test_what_measures(what):
    same(MEASURED[what], small)


README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPET = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def loss_of" in block)


def snippet(model, device):
    """README's own loop."""
    names = {}
    exec(SNIPPET, names)
    batch = on(device, collate(tiny.rows(4), tiny.PAD))
    wrapped = lambda noisy: model(noisy).logits  # noqa: E731
    loss = names["loss_of"](wrapped, batch["input_ids"], batch["maskable"], 0, tiny.MASK)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def own_loop(model, device):
    """The page's loop with accumulation: positions are made where torch makes what is not told."""
    noise = Noise("isad-exact+mirror", mask_id=tiny.MASK, seed=3)
    batch, found = collate(tiny.rows(4), tiny.PAD), []
    for part in (slice(0, 2), slice(2, 4)):
        ids, maskable = (batch[name][part].to(device) for name in ("input_ids", "maskable"))
        taken = noise.draw(
            ids, maskable, 5, positions=torch.arange(4)[part], step_rows=4, delimiter=batch["delimiter"][part]
        )
        loss = taken.loss(model(taken.input_ids).logits)
        loss.backward()
        found += [loss.detach(), taken.token_weights()]
    return found


def plugged(make):
    """One step of a plug point of another trainer."""

    def measured(_, device):
        guess = plugs.Guess()
        if device == SECOND:
            moved(guess)
        with torch.no_grad():
            return make(guess, device)

    return measured


def of_dllm(guess, device):
    losses = []
    for method, base in (("lowdisc+fixedcount", plugs.MDLMTrainer), ("strats+mirror", plugs.BD3LMTrainer)):
        trainer = dllm(base, method)
        batches = [on(device, plugs.batch_of()) for _ in range(2)]
        losses += in_step(trainer, guess.train(), batches, step=2)
    return losses


def of_dream(guess, device):
    noise, batch = DreamNoise("lowdisc+fixedcount", seed=3), on(device, plugs.batch_of())
    noise.start(4, [8])
    return noise.q_sample(batch["input_ids"], batch["labels"] != -100, plugs.MASK, eos_token_id=1)


def of_automodel(guess, device):
    strategy = type("Less", (AutomodelNoise, plugs.MDLMStrategy), {})()
    strategy.create_loss_fn({"method": "mirror"})
    recipe, batch = plugs.automodel_recipe(3), on(device, plugs.batch_of())
    batch["loss_mask"] = batch["labels"] != -100
    strategy.setup_extra(recipe)
    counts = strategy.pre_step(recipe, [batch])
    return counts, {name: batch[name] for name in ("_noisy_input_ids", "_p_mask", "_clean_input_ids")}


def of_collator(guess, device):
    noise = Noise("lowdisc+fixedcount", mask_id=plugs.MASK, seed=3)
    batch = NoisyCollator(dict, noise, rows=8)(on(device, plugs.batch_of()))
    return weighted_loss(guess(batch["input_ids"]).logits, batch)


def of_scheduler(guess, device):
    scheduler = AlphaScheduler(DENSITY)
    u = torch.linspace(0, 1, 5, dtype=torch.float64).to(device)
    return scheduler(u), scheduler.weight(u), scheduler.alpha_derivative(u)


LOOPS = {"README": snippet, "own loop": own_loop} | {
    make.__name__: plugged(make) for make in (of_dllm, of_dream, of_automodel, of_collator, of_scheduler)
}


@pytest.mark.parametrize("loop", LOOPS)
def test_loops_and_trainers_of_others(loop):
    same(LOOPS[loop], small)


def test_the_second_device_refuses_what_cuda_refuses():
    with second_device():
        there = torch.ones(3, device=SECOND)
        for wrong in (
            lambda: there + torch.ones(3),
            lambda: torch.ones(3)[there.bool()],
            lambda: torch.ones(3).add_(there.sum()),
            lambda: there.__setitem__(torch.tensor([0, 1]), torch.ones(2)),
            lambda: torch.ones(3).__setitem__(torch.tensor([0, 1]), there[:2]),
            lambda: torch.where(there > 0, there, torch.zeros(3)),
            lambda: torch.searchsorted(torch.ones(3), there),
            lambda: torch.cat((there, torch.ones(1))),
            lambda: there.gather(0, torch.tensor([0])),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there[torch.tensor([0, 1])] + torch.tensor(2.0)).tolist() == [3, 3]
        assert there.device.type == "cuda"
        assert there.cpu().device.type == "cpu"


def test_a_training_step_waits_for_the_device_a_few_times_only(tmp_path):
    """Each ``.item()``, ``bool(...)`` or selection by a mask makes the CPU wait for all that the GPU has to do."""
    _, _, waits = on_both(
        lambda model, device: one_step(
            tmp_path, model, device, "lowdisc+fixedcount", tiny.rows(6), (tiny.MASK, tiny.PAD)
        ),
        tiny.model,
        stays=True,
    )
    assert sum(waits.values()) <= 40, waits


def test_moving_keeps_tied_weights_tied(tmp_path):
    model = moved(load_model(str(CASES["llada-tied"].checkpoint(tmp_path))).model)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert isinstance(model.get_input_embeddings().weight, OnSecond)
