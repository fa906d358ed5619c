"""Densities of t in training on pairs: one that follows what draws add to the loss, one from a file, and refusals."""

from __future__ import annotations

import json

import pytest
import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.lab.fit import run_fit
from stabledllm.method_checks import standing_still
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.of_parts import OfParts
from stabledllm.ppots.adaptive import AdaptiveDensity, AdaptiveOptions
from stabledllm.ppots.record import FittedDensity
from stabledllm.preference.draws import BoundEstimator
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference_checks import check_fit_to_pairs, check_pair_density
from stabledllm.training.preferences import PairStatistics
from stabledllm.training.run import train
from tests.cli.forked import Forked, ranks
from tests.cli.runner import assert_refused, in_process
from tests.training.test_preferences import BETA, PAIRS, SEED, logged, losses, make

HOW = BoundEstimator("lowdisc+ppots+fixedcount", 4, density=Uniform(), tokens_per_batch=200)


def following(out, **change):
    """A Trainer whose density is refitted after every step, from the differences of that step."""
    trainer = make(out, how=HOW, loss=change.pop("loss", DPOLoss(BETA)), **change)
    trainer.adaptive = AdaptiveDensity(
        AdaptiveOptions(every=1, half_life=5, rates=4), shared_noise=False, cost=torch.ones_like, eps=0.001,
        per_octave=2**6,
    )  # fmt: skip
    return trainer


def run(out, **change):
    trainer = following(out, **change)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("following") / "8x1")


def test_it_starts_uniform_and_follows_the_differences(whole):
    """Before the first step policy and reference are alike: nothing is there to follow, and p stays uniform."""
    steps = [entry["step"] for entry in whole.adaptive.history]
    assert steps[0] == 2
    assert steps[-1] == 4
    assert isinstance(whole.sampler, Tabulated)
    assert float(whole.sampler.density.std()) > 0.02
    assert whole.estimator.density == Uniform(), "held-out pairs keep the density that the run started from"


def test_splitting_a_step_changes_nothing(tmp_path, whole):
    split = run(tmp_path, micro=2, accumulation=4)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-9)
    assert split.adaptive.density == whole.adaptive.density
    assert logged(split, "rewards/margins") == pytest.approx(logged(whole, "rewards/margins"), rel=1e-8)


def test_a_killed_run_continues_with_the_same_bits(tmp_path, whole):
    run(tmp_path, save_strategy="steps", save_steps=3)
    resumed = following(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(resumed) == losses(whole)[3:]
    assert resumed.adaptive.state() == whole.adaptive.state()


@pytest.mark.processes
def test_two_ranks_have_one_density(tmp_path, whole):
    from tests.training import rank_pairs

    for process in ranks(lambda launched: Forked(lambda: rank_pairs.main(tmp_path, following), tmp_path, launched)):
        ended = process.ended()
        assert ended.returncode == 0, ended.stderr[-2000:]
    records = [json.loads((tmp_path / f"rank{number}.json").read_text()) for number in range(2)]
    both = [a + b for a, b in zip(*(record["losses"] for record in records), strict=True)]
    assert both == pytest.approx(losses(whole), rel=1e-9)


def test_what_a_step_tells_the_density(tmp_path):
    """The draws of all pairs, each with slope times difference; those of rows that a rank repeats count nowhere."""
    statistics, told = PairStatistics(), []
    statistics.adaptive = type("Told", (), {"update": lambda _, *given: told.append(given)})()
    position, counted = torch.tensor([1, 0, 1]), torch.tensor([True, True, False])
    t = torch.arange(12, dtype=torch.float64).view(3, 2, 2) / 12
    statistics._finish_pairs = lambda gather: None
    statistics.add_draws(position, counted, (t, t + 1), 10 * t)
    statistics.finish_step(lambda table: table, Uniform())
    ((ratios, weights, added),) = told
    expected = torch.cat((t[1].flatten(), t[0].flatten()))
    assert torch.equal(ratios, expected)
    assert torch.equal(weights, expected + 1)
    assert torch.equal(added, 10 * expected)


def test_the_numbers_of_a_step_are_those_without_following(tmp_path):
    """Until the first refit the draws are those of uniform t, and so is the step."""
    plain = make(tmp_path / "a", how=HOW, steps=1)
    plain.train()
    assert losses(run(tmp_path / "b", steps=1)) == pytest.approx(losses(plain), rel=1e-12)
    draws = HOW.draw(plain.model, PAIRS[:2], [0, 1], seed=SEED)
    torch.testing.assert_close(draws.ratios()[1], torch.ones(2, 2, 4, dtype=torch.float64))


def pairs_file(folder) -> str:
    rows = [{"prompt": f"{i}+1=?", "chosen": f"It is {i + 1}.", "rejected": f"It is {i + 2}!"} for i in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "pairs.jsonl")


def settings(folder, **change) -> TrainSettings:
    plain = {
        "model": "tiny", "data": {"train": pairs_file(folder), "validation_share": 0}, "objective": {"kind": "dpo"},
        "batch": 4, "steps": 3, "dpo": {"budget": 4}, "untuned": False, "log_every": 1, "out": str(folder / "run"),
        "trainer": {"learning_rate": 1e-3, "disable_tqdm": True},
    }  # fmt: skip
    return TrainSettings.model_validate(plain | change)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run that has moved, and a density that is fitted to it against the model that it was trained from."""
    folder = tmp_path_factory.mktemp("fitted")
    train(settings(folder))
    small = {"rows": 6, "rates": 4, "masks": 2, "starts": 2}
    asked = settings(folder, model=str(folder / "run" / "model"), method="ppots", ppots=small,
                     dpo={"budget": 4, "reference": "tiny"})  # fmt: skip
    said: list[str] = []
    density = run_fit(asked, folder / "fit" / "p_of_t.json", lambda line: said.append(str(line)))
    return folder, density, said


def test_a_fit_to_pairs_is_saved_and_trained_with(fitted):
    folder, density, said = fitted
    path = folder / "fit" / "p_of_t.json"
    assert FittedDensity.load(path).record == json.loads(path.read_text())
    assert density.record["config"]["reference"] == "tiny"
    assert any("E|policy less reference|²" in " ".join(line.split()) for line in said)
    record = train(settings(folder, method="ppots", p_of_t=str(path), out=str(folder / "with")))
    assert record["identity"]["density"]
    drawn = FittedDensity.load(folder / "with" / "p_of_t.json")
    assert torch.equal(drawn.sampler.density, density.sampler.density)
    follow = settings(folder, method="adaptive", p_of_t=str(path), adaptive={"every": 1}, out=str(folder / "follow"))
    assert train(follow)["adaptive"], "its history"


def test_a_density_serves_what_it_was_fitted_for_alone(fitted):
    """Of differences for pairs, of losses for rows: a file of the other kind is refused, by a sentence that says so."""
    folder, density, _ = fitted
    path = str(folder / "fit" / "p_of_t.json")
    with pytest.raises(UserError, match=r"fitted for objective.kind=masked, found one for dpo"):
        density.refuse_other(Method.parse("ppots"), path)
    old = FittedDensity(density.sampler, {k: v for k, v in density.record.items() if k != "objective_kind"})
    with pytest.raises(UserError, match=r"fitted for objective.kind=dpo, found one for masked; fit one by"):
        old.refuse_other(Method.parse("ppots"), path, kind="dpo")


KEYS = ["--model", "tiny", "--data", "pairs.jsonl", "batch=4", "steps=1"]


def test_refusals_at_once(tmp_path):
    pairs_file(tmp_path)
    without = in_process("train", "dpo", *KEYS, "method=ppots", cwd=tmp_path)
    assert_refused(without, "key 'p_of_t'", "stabledllm fit objective.kind=dpo", "method=adaptive")
    kept = in_process("train", "dpo", *KEYS, "method=adaptive", "dpo.reference=kept", cwd=tmp_path)
    assert_refused(kept, "key 'dpo.reference': expected copy or adapter for method 'adaptive'")
    fit = ["fit", "objective.kind=dpo", "--data", "pairs.jsonl", "--method", "ppots"]
    assert_refused(in_process(*fit, cwd=tmp_path), "key 'dpo.reference'", "found auto; write dpo.reference=MODEL")
    assert_refused(in_process(*fit, "dpo.reference=tny", cwd=tmp_path), "tny", "tiny")
    idle = in_process(*fit, "dpo.reference=tiny", "dpo.correction=jackknife", cwd=tmp_path)
    assert_refused(idle, "key 'dpo.correction'", "a key that 'fit' uses")
    alike = in_process(*fit, "dpo.reference=tiny", "ppots.rows=4", "ppots.rates=4", cwd=tmp_path)
    assert_refused(alike, "expected a policy that has moved from its reference 'tiny'")


@pytest.mark.parametrize("check", [check_pair_density, check_fit_to_pairs])
def test_blocks_have_a_t_for_each(tmp_path, check):
    run = settings(tmp_path, block_size=4, decoding={"block": 4}, p_of_t="p.json", dpo={"reference": "tiny"})
    with pytest.raises(UserError, match="method 'ppots': expected no density of t for pairs in blocks"):
        check(run, OfParts("ppots"))


def test_rows_of_one_answer_are_not_asked_for_a_file(tmp_path):
    check_pair_density(TrainSettings(), OfParts("ppots"))
    check_fit_to_pairs(TrainSettings(), OfParts("ppots"))
    assert standing_still(OfParts("adaptive")) == "ppots"
    assert standing_still(OfParts("standard")) == "standard"
