"""Experiments of policy gradients: published estimators among the methods, at equal forwards, rollouts apart."""

from __future__ import annotations

import pytest

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.experiment.at_once import load_checked
from stabledllm.experiment.budget import rows_per_step
from stabledllm.experiment.compared import name_of, run_under, runs_compared
from stabledllm.experiment.idle import Run, idle_overrides
from stabledllm.experiment.notes import notes
from stabledllm.experiment.planned import runs_of
from stabledllm.experiment.run import run_experiment
from stabledllm.noise.of_parts import OfParts
from tests.fakes.study import quiet

METHODS = ["standard", "lowdisc+fixedcount", "espo", "coupled", "one-step", "unigrpo"]
BASE = {
    "model": "tiny",
    "data": {"train": "synthetic:4-5", "train_rows": 16, "validation_rows": 4, "test_rows": 4},
    "objective": {"kind": "grpo"},
    "grpo": {
        "group": 2,
        "budget": 6,
        "inner": 2,
        "rollout": {"length": 16, "steps": 4, "block": 8, "temperature": 2.0},
    },
    "batch": 2,
    "steps": 2,
    "log_every": 1,
    "untuned": False,
    "decoding": {"length": 16, "steps": 4, "block": 8},
}


def settings(out, **keys) -> ExperimentSettings:
    return ExperimentSettings.model_validate({"base": BASE, "methods": METHODS, "seeds": [1], "out": str(out)} | keys)


def test_a_name_stands_for_an_estimator_in_policy_gradients_alone():
    runs = runs_compared(settings("x"))
    assert [(run.method, run.grpo.estimator) for run in runs[:3]] == [
        ("standard", "method"), ("lowdisc+fixedcount", "method"), ("standard", "espo"),
    ]  # fmt: skip
    assert [name_of(run) for run in runs] == METHODS
    with pytest.raises(UserError, match="espo"):
        runs_of(ExperimentSettings(methods=["standard", "espo"]))


def test_a_method_is_not_run_by_an_estimator_of_the_base():
    base = TrainSettings(objective={"kind": "grpo"}, grpo={"estimator": "espo", "budget": 2})
    assert run_under(base, "lowdisc").grpo.estimator == "method"
    assert name_of(run_under(base, "lowdisc")) == "lowdisc"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["base.grpo.estimator=espo"], ["key 'base.grpo.estimator'", "found espo", "methods=[standard,espo]"]),
        (["methods=[standard,coupled]"], ["key 'grpo.budget'", "multiple of 3", "write grpo.budget=3"]),
        (["methods=[standard,esppo]"], ["esppo"]),
        (["methods=[standard,espo,espo]"], ["'espo' twice"]),
    ],
)
def test_what_is_refused_before_anything_is_loaded(words, told):
    with pytest.raises(UserError) as refused:
        load_checked("quickstart-rl", words)
    for word in told:
        assert word in str(refused.value)


def test_responses_have_a_budget_so_that_views_need_not_divide_the_batch():
    words = ["methods=[standard,mirror]", "base.batch=3"]
    found = load_checked("quickstart-rl", words)
    assert [rows_per_step(run.method, found) for run in runs_of(found)] == [3, 3]


def test_rollouts_are_told_apart():
    runs = [
        {"method": name, "forward_passes": 60, "rollout_forward_rows": rows, "steps": 2, "probe_forward_passes": 0}
        for name, rows in (("standard", 90), ("espo", 96))
    ]
    first, second = notes("budget", runs)
    assert first.startswith("Equal compute: every response had the same budget of forwards under every method")
    assert "60 in every run" in first
    assert second == "On top of that, decoding the responses took forward rows: standard 90, espo 96."


@pytest.mark.slow
def test_estimators_are_compared_at_the_same_forwards(tmp_path):
    results = run_experiment(settings(tmp_path), quiet)
    runs = {run["method"]: run for run in results["runs"]}
    assert list(runs) == METHODS
    standard = runs["standard"]
    # Two steps of four responses, 6 forwards each: values, the same with a graph, and the old policy's for one step.
    assert standard["forward_passes"] == 2 * 4 * 6 * 2 + 4 * 6
    for name, run in runs.items():
        assert {"reward", "accuracy", "validation_nll"} <= set(run["metrics"])
        assert run["rollout_forward_rows"] > 0
        # Coupled masks everything once for two draws; a view that masks nothing is no forward.
        least = {"coupled": 100, "espo": 80, "unigrpo": 80}.get(name, 120)
        assert least <= run["forward_passes"] <= 120
    first = {name: run["history"][0]["reward"] for name, run in runs.items()}
    assert len(set(first.values())) == 1, "before the first step all draw the same responses"
    assert {entry["metric"] for entry in results["summary"]} >= {"reward", "accuracy"}
    assert (tmp_path / "runs" / "espo" / "seed-1" / "run.json").is_file()
    assert results["runs"] == run_experiment(settings(tmp_path), quiet)["runs"], "no run is repeated"


@pytest.mark.parametrize(
    ("recipe", "words", "told"),
    [
        ("grpo", ["data.train=scenes"], "expected questions in words for objective.kind=grpo, found pictures"),
        ("grpo", ["data.train=text:mine.jsonl"], "found plain text"),
        ("grpo", ["data.train=preference:pairs.jsonl"], "write data.train=pairs.jsonl, whose prompts are answered"),
        ("dpo", ["data.train=synthetic"], "expected rows with 'chosen' and 'rejected' for objective.kind=dpo"),
        ("grpo", ["data.train=synthetic", "method=adaptive"], "take lowdisc+fixedcount"),
        ("grpo", ["data.train=synthetic", "method=espo"], "write method=standard grpo.estimator=espo"),
        ("grpo", ["data.train=synthetic", "grpo.reward_weights=[0]"], "expected one other than 0"),
        ("sft", ["data.train=synthetic", "data.format=prompts"], "write objective.kind=grpo, or leave data.format out"),
        ("dpo", ["data.train=pairs.jsonl", "dpo.loss=ipo"], "the loss of pairs is DPO's"),
        ("grpo", ["data.train=synthetic", "grpo.loss_type=dapo"], "the loss is set by grpo.ratio"),
        ("grpo", ["data.train=synthetic", "objective.kind=ppo"], "write objective.kind=grpo."),
        ("grpo", ["data.train=synthetic", "objective.kind=llada2"], "write objective.name=llada2."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_what_no_run_can_learn_from_is_refused_before_it_is_loaded(recipe, words, told):
    with pytest.raises(UserError) as refused:
        load_checked(recipe, ["model=tiny", *words], reads_data=False)
    assert told in str(refused.value)


def test_prompts_that_are_drawn_together_are_no_idle_key():
    run = TrainSettings(
        objective={"kind": "grpo"}, data={"train": "mine.jsonl", "validation_share": 0.0, "validation": None}
    )
    assert idle_overrides(run, [Run(run, OfParts())], ["generate_batch=4"]) == []
