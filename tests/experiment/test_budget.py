"""Equal compute is equal: the forwards that runs really make, and the arithmetic behind them."""

from __future__ import annotations

import math

import pytest
import torch

from stabledllm.build import build_method
from stabledllm.config import load_recipe, shipped_recipes
from stabledllm.config.settings import ExperimentSettings
from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.experiment.budget import forwards_by_step, rows_per_step, rows_seen, run_share, standard_steps
from stabledllm.experiment.compared import of_responses
from stabledllm.experiment.notes import notes
from stabledllm.experiment.run import run_experiment
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method, MethodOptions
from tests.cli.runner import ROOT
from tests.fakes import tiny
from tests.fakes.study import BASE, quiet
from tests.fakes.tiny import rows as real_rows
from tests.fakes.trainer import DENSITY, ROWS, make_trainer

METHODS = ("standard", "mirror", "multisample3", "partition4", "complement", "lowdisc+complement", "ppots+mirror")
METHODS += ("strats+mirror", "autoregressive", "syrm+mirror", "adaptive+complement", "ema+ppots")


def wanted(method: str, n: int, batch: int, **base) -> tuple[ExperimentSettings, list[TokenRow]]:
    tree = {"base": {"batch": batch} | base, "methods": list(dict.fromkeys(["standard", method])), "equal": "compute"}
    rows = [TokenRow(list(range(6 + i % 5)), 3, syntax=[0]) for i in range(n)]
    return ExperimentSettings.model_validate(tree), rows


def rows_of_a_step(name: str, settings: ExperimentSettings, *args, **kwargs) -> int:
    return rows_per_step(build_method(name, settings.base), settings, *args, **kwargs)


def share_of(name: str, settings: ExperimentSettings, rows: list[TokenRow]) -> dict:
    return run_share(build_method(name, settings.base), 1, settings, None, rows)


def spent(method: str, seed: int, settings: ExperimentSettings, rows: list[TokenRow]) -> tuple[int, int, dict]:
    """The run's forwards, those of one of its steps at most, and its settings."""
    density = DENSITY if "ppots" in method else None
    parsed = Method.parse(method, MethodOptions(**settings.base.method_options.model_dump()))
    share = run_share(parsed, seed, settings, density, rows)
    size = torch.tensor([row.maskable_count(parsed.syrm) for row in rows])
    by_step = forwards_by_step(
        parsed, parsed.sampler(density), size, share["batch"], seed, seed, settings.base.block_size
    )
    every = [next(by_step) for _ in range(share["steps"])]
    return sum(every), max(every), share


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("below", [1.0, 0.5])
def test_every_method_gets_the_forwards_of_standard_to_within_one_step(method, below):
    """Over batches that do and do not divide the rows, steps, and epochs whole and in part."""
    for batch in (12, 24):
        for n in (7, 22, 48):
            for length in ({"steps": 5}, {"steps": 23}, {"epochs": 1}, {"epochs": 2.5}, {"epochs": 5}):
                settings, rows = wanted(method, n, batch, method_options={"mirror_below": below}, **length)
                budget, _, standard = spent("standard", 3, settings, rows)
                steps = length.get("steps") or math.ceil(length["epochs"] * math.ceil(n / batch))
                assert standard == {"batch": batch, "steps": steps, "trainer": {}}
                assert budget == sum(min(batch, n - i % math.ceil(n / batch) * batch) for i in range(steps))
                forwards, step, share = spent(method, 3, settings, rows)
                assert abs(forwards - budget) <= step, (batch, n, length, share)


@pytest.mark.parametrize(("block_size", "from_start", "one_t"), [(None, 0, 0), (4, 0, 0), (5, 1, 0), (4, 0, 1)])
@pytest.mark.parametrize(
    ("method", "below"),
    [("standard", 1.0), ("mirror", 1.0), ("strats+complement", 1.0), ("partition3", 1.0), ("ppots+mirror", 0.4)],
)
def test_what_is_counted_ahead_is_what_training_counts(
    tmp_path, method, below, block_size, from_start, one_t, monkeypatch
):
    """Step by step, on 22 rows in batches of 8, so that the last step of an epoch is short."""
    options = MethodOptions(mirror_below=below)
    parsed = Method.parse(method, options)
    monkeypatch.setattr(Method, "parse", classmethod(lambda cls, *_, **__: parsed))
    model = tiny.model(32)
    model.config.blocks_from_start = from_start
    trainer = make_trainer(
        tmp_path, method, micro=4, accumulation=2, steps=7, block_size=block_size, order_seed=5, model=model
    )
    trainer.one_t = bool(one_t)
    trainer.train()
    size = torch.tensor([row.maskable_count() for row in real_rows(ROWS)])
    lead = torch.tensor([row.prompt_length % 5 if from_start else 0 for row in real_rows(ROWS)])
    assert len(set(lead.tolist())) > 1 or not from_start
    ahead = forwards_by_step(parsed, parsed.sampler(DENSITY), size, 8, 11, 5, block_size, lead, bool(one_t))
    counted = [h["forward_passes"] for h in trainer.state.log_history if "forward_passes" in h]
    assert [next(ahead) for _ in range(7)] == [b - a for a, b in zip([0, *counted], counted, strict=False)]


def test_rows_a_step_cost_the_batch_by_the_mean_cost():
    """MIRROR below t = 1/2 takes one and a half forwards; a complement's second view is empty at k = P."""
    settings, _ = wanted("mirror", 20, 30, method_options={"mirror_below": 0.5})
    assert rows_of_a_step("mirror", settings) == 20
    low = Tabulated([9.0, 1.0])  # nine tenths of t below 1/2: 1.9 forwards a row
    assert rows_of_a_step("ppots+mirror", settings, low) == 16
    assert rows_of_a_step("complement", settings, size=torch.tensor([2])) == 20
    assert rows_of_a_step("complement", settings, size=torch.tensor([1])) == 30, "one token leaves nothing for a second"
    whole = settings.model_copy(update={"base": settings.base.model_copy(update={"micro_batch": 6})})
    assert rows_of_a_step("mirror", whole) == 18, "a multiple of micro_batch"
    with pytest.raises(UserError, match="multiple of the 4 views of 'partition4', found 30"):
        rows_of_a_step("partition4", settings)


def test_the_schedule_spans_the_same_share_of_the_steps():
    trainer = {
        "warmup_steps": 4, "learning_rate": 1e-3, "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 2, "min_lr_ratio": 0.1},
    }  # fmt: skip
    settings, rows = wanted("mirror", 22, 16, epochs=5, trainer=trainer)
    share = share_of("mirror", settings, rows)
    assert standard_steps(settings.base, 22) == 10
    assert (share["batch"], share["steps"]) == (8, 7), "55 rows, 22 in three steps: 110 forwards less 2"
    assert share["trainer"]["warmup_steps"] == 2
    assert share["trainer"]["lr_scheduler_kwargs"] == {"num_decay_steps": 1, "min_lr_ratio": 0.1}
    assert share_of("standard", settings, rows)["trainer"] == trainer
    part, rows = wanted("mirror", 22, 16, epochs=5, trainer={"warmup_steps": 0.1})
    assert share_of("mirror", part, rows)["trainer"] == {"warmup_steps": 0.1}, "a share already"
    assert rows_seen(7, 8, 22) == 52


def test_pairs_have_a_budget_of_their_own():
    """A pair takes dpo.budget forwards under every method, so that rows and steps are the same."""
    settings = ExperimentSettings(base={"objective": {"kind": "dpo"}, "batch": 7, "steps": 5}, equal="compute")
    for name in ("standard", "mirror", "multisample4"):
        method = build_method(name, settings.base)
        assert rows_per_step(method, settings) == 7
        assert run_share(method, 1, settings, None, []) == {"batch": 7}


def test_equal_steps_leaves_rows_and_length_alone():
    settings, rows = wanted("mirror", 22, 15, epochs=5)
    settings = settings.model_copy(update={"equal": "steps"})
    assert share_of("mirror", settings, rows) == {"batch": 15}


EXPERIMENTS = [name for name, text in shipped_recipes().items() if "\nmethods:" in text]
EXPERIMENTS += [str(path) for path in sorted((ROOT / "studies").rglob("*.yaml")) if "\nmethods:" in path.read_text()]


@pytest.mark.parametrize("recipe", EXPERIMENTS)
@pytest.mark.parametrize("rows", [500, 7_473])
def test_every_shipped_experiment_is_equal_under_equal_compute(recipe, rows):
    settings = load_recipe(recipe, ["equal=compute"])
    if of_responses(settings.base):  # a budget for each response, counted in test_policy.py
        assert rows_of_a_step("standard", settings) == settings.base.batch
        return
    responses = [TokenRow(list(range(50 + i % 40)), 20) for i in range(rows)]
    budget, *_ = spent("standard", 42, settings, responses)
    for method in settings.methods:
        forwards, step, share = spent(method, 42, settings, responses)
        assert abs(forwards - budget) <= step, (method, share)


@pytest.mark.parametrize("equal", ["compute", "steps"])
def test_the_sentence_of_an_experiment_is_what_its_runs_counted(tmp_path, equal):
    """Under epochs, with a short last step, and with a method whose cost is one and a half forwards."""
    base = BASE | {"steps": None, "epochs": 1.5, "batch": 6, "method_options": {"mirror_below": 0.5}}
    tree = {"base": base, "methods": ["standard", "mirror"], "seeds": [1], "equal": equal, "out": str(tmp_path)}
    results = run_experiment(ExperimentSettings.model_validate(tree), quiet)
    counted = {run["method"]: run["forward_passes"] for run in results["runs"]}
    steps = {run["method"]: run["steps"] for run in results["runs"]}
    (said,) = results["notes"]
    if equal == "steps":
        assert steps == {"standard": 6, "mirror": 6}
        assert said.startswith("Equal steps: ")
        assert "counted steps per run: 6 in every run" in said
        assert counted["mirror"] > counted["standard"] == 36
    else:
        assert said.startswith("Equal compute: ")
        assert abs(counted["mirror"] - 36) <= 6
    assert counted["standard"] == 36
    assert f"standard 36, mirror {counted['mirror']}" in said or f"{counted['mirror']} in every run" in said


def run(method: str, forwards: int, steps: int, **more) -> dict:
    counts = {"forward_passes": forwards, "steps": steps, "probe_forward_passes": 0}
    return {"method": method, "metrics": {}} | counts | more


def test_the_sentence_says_a_difference_and_whether_it_is_within_a_step():
    same = [run("standard", 3840, 120), run("mirror", 3840, 120)]
    assert notes("compute", same)[0].endswith("counted forward passes per run: 3,840 in every run.")
    near = [run("standard", 3840, 120), run("mirror", 3856, 120)]
    assert notes("compute", near)[0].endswith("mirror's 3,856 (+0.42%, within one optimizer step).")
    far = [run("standard", 3840, 120), run("ppots", 3840, 120), run("mirror", 7680, 240)]
    assert notes("compute", far)[0].endswith("mirror's 7,680 (+100.00%, more than one optimizer step).")
    assert "standard 3,840, ppots 3,840, mirror 7,680" in notes("compute", far)[0]
    assert notes("compute", [])[0].endswith("no run has finished yet.")
    cut = [run("standard", 3840, 120), run("mirror", 64, 2, status="diverged")]
    assert notes("compute", cut)[0].endswith("3,840 in every run."), "a diverged run made fewer, and is no difference"
    probed = [run("standard", 10, 1), run("ppots", 10, 1, probe_forward_passes=100)]
    assert notes("compute", probed)[1].endswith("took forward passes: ppots 100.")
    mixed = [run("standard", 10, 1, versions={"torch": "2.13"}), run("ppots", 10, 1, versions={"torch": "2.14"})]
    assert notes("steps", mixed)[1] == "The runs were not all made with the same packages: torch 2.13 and 2.14."


@pytest.mark.parametrize(
    ("tokens", "method", "rows"), [("gift", "mirror", 16), ("lift", "lowdisc", 24), ("gift", "ppots", 24)]
)
def test_forwards_that_choose_tokens_are_part_of_equal_compute(tokens, method, rows):
    """Standard makes them too: at gift's one for each row, two views cost 3 forwards where Standard has 2."""
    settings, data = wanted(method, 60, 24, objective={"tokens": tokens})
    parsed = build_method(method, settings.base)
    share = run_share(parsed, 1, settings, DENSITY if parsed.needs_p else None, data)
    assert share["batch"] == rows
    standard = share_of("standard", settings, data)
    seen, plain = (rows_seen(x["steps"], x["batch"], 60) for x in (share, standard))
    assert plain == rows_seen(standard_steps(settings.base, 60), 24, 60)
    cost = 3 / 2 if method == "mirror" else 1
    assert abs(seen * cost - plain) <= rows, "within a step of Standard's forwards"
