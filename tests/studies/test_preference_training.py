"""The study of training on rewards: its recipe is equal for all estimators, its page follows from what was measured."""

from __future__ import annotations

import json

import pytest

from stabledllm.config import load_recipe
from stabledllm.config.settings import DecomposeSettings
from stabledllm.experiment.compared import name_of
from stabledllm.experiment.planned import runs_of
from tests.cli.runner import ROOT, in_process
from tests.studies.loading import loaded

FOLDER = ROOT / "studies" / "preference_rl"
NAMES = ["standard", "lowdisc+fixedcount", "espo", "coupled", "one-step"]


@pytest.fixture(scope="module")
def study():
    yield from loaded(FOLDER)


@pytest.fixture(scope="module")
def training(study):
    return study.training


def record(rewards: dict[str, float], seeds: int = 3) -> dict:
    """A record whose estimators end with these rewards, a little higher for every seed."""
    runs = [
        {
            "method": name, "seed": seed, "steps": 4, "seconds": 10.0 + seed, "forward_passes": 99,
            "metrics": {m: {"value": value + 0.01 * seed, "stderr": 0.01, "n": 9} for m in ("reward", "accuracy")},
        }
        for name, value in rewards.items()
        for seed in range(seeds)
    ]  # fmt: skip
    untuned, rates = {"accuracy": {"value": 0.4, "stderr": 0.05}}, {"3e-5": [0.5, 0.6], "1e-4": [0.7, 0.6], "3e-4": []}
    return {"rates": rates, "untuned": untuned, "runs": runs, "notes": ["Counted."], "noise": {}}


def noise(variances: dict[str, float], cosines: dict[str, float]) -> dict:
    rows = [
        {
            "name": name, "forwards": 6, "of_bound": True, "offset": {"value": 0.1}, "bias": {"value": 0.0},
            "direction": {"value": cosines[name], "stderr": 0.02},
            "gradient": {"value": value, "ci_low": 0.9 * value, "ci_high": 1.1 * value},
        }
        for name, value in variances.items()
    ]  # fmt: skip
    return {"start": {"prompts": 8, "mean_reward": 0.5, "methods": rows}}


def test_the_recipe_gives_every_estimator_the_same_but_its_noise(training):
    settings = load_recipe(str(training.RECIPE))
    runs = runs_of(settings)
    assert [name_of(run.settings) for run in runs] == NAMES
    assert len(settings.seeds) >= 8
    without = {"method": None, "grpo": None}
    alike = [run.settings.model_dump(exclude={"method", "grpo"}) | without for run in runs]
    assert all(each == alike[0] for each in alike)
    assert {run.settings.grpo.budget for run in runs} == {6}


def test_the_noise_is_measured_as_it_is_trained(training, tmp_path):
    settings = load_recipe(str(training.RECIPE))
    (tmp_path / "results.json").write_text(json.dumps({"config": settings.model_dump()}))
    for place in training.PLACES:
        words = [str(word) for word in training._measuring(tmp_path, place, small=False)]
        rollout = {word.partition("=")[0].rpartition(".")[2] for word in words if word.startswith("grpo.rollout.")}
        assert rollout <= set(type(settings.base.grpo.rollout).model_fields)
        given = dict(word.split("=", 1) for word in words if "=" in word)
        grpo, base = settings.base.grpo, settings.base
        for key in rollout:
            assert given[f"grpo.rollout.{key}"] == str(getattr(grpo.rollout, key))
        assert given["data.train"] == base.data.train
        assert (int(given["grpo.budget"]), int(given["grpo.group"])) == (grpo.budget, grpo.group)
        assert given["grpo.presets"] == "[espo,coupled,one-step]"
        assert words[words.index("--methods") + 1] == "lowdisc+fixedcount"
        assert ("grpo.old" in given) == (place == "end")
        known = DecomposeSettings.model_fields["grpo"].annotation.model_fields
        assert {key.split(".")[1] for key in given if key.startswith("grpo.")} <= set(known)


def test_a_predictor_orders_the_results_or_not(training):
    rewards = dict(zip(NAMES, (0.5, 0.8, 0.7, 0.6, 0.4), strict=True))
    found = record(rewards, seeds=8)
    exact = {name: 1 - value for name, value in rewards.items()}
    correlated = training.rank_correlation(exact, found["runs"], "reward")
    assert correlated["value"] == pytest.approx(-1)
    assert correlated["ci_high"] < 0
    other = dict(zip(NAMES, (1.0, 3.0, 2.0, 5.0, 4.0), strict=True))
    assert training.rank_correlation(other, found["runs"], "reward")["ci_high"] > 0
    assert training.rank_correlation(dict.fromkeys(NAMES[:3], 1.0), found["runs"], "reward") is None


def test_the_page_says_which_of_variance_and_bias_predicts(training):
    rewards = dict(zip(NAMES, (0.5, 0.8, 0.7, 0.6, 0.4), strict=True))
    found = record(rewards, seeds=8)
    variances = {name: 2 - value for name, value in rewards.items()}
    text = training.section(found | {"noise": noise(variances, dict.fromkeys(NAMES, 1.0))})
    assert "The variance of the gradient (start) predicts the reward at the end of training" in text
    assert "bias of the gradient's direction" not in text, "equal biases order nothing"
    unordered = dict(zip(NAMES, (1.0, 3.0, 2.0, 5.0, 4.0), strict=True))
    text = training.section(found | {"noise": noise(unordered, {name: 1 - 0.1 * i for i, name in enumerate(NAMES)})})
    assert "Neither variance nor bias predicts the result" in text


def test_the_page_has_a_row_for_every_estimator(study, training):
    rewards = dict(zip(NAMES, (0.5, 0.8, 0.7, 0.6, 0.4), strict=True))
    found = record(rewards)
    text = study.page((FOLDER / "README.md").read_text(encoding="utf-8"), {"training": found})
    assert text == study.page(text, {"training": found}), "written again it is the same"
    row = next(line for line in text.splitlines() if line.startswith("| `espo`"))
    assert "0.710 (0.685 to 0.735)" in row, "the mean over seeds with Student's interval"
    assert "+0.200" in row, "paired, so without a spread"
    assert "10 to 12 s" in row
    assert "The shipped model's accuracy is 0.400 ± 0.050." in text
    assert "Learning rate 1e-4, under which" in text
    assert "3e-5 (0.550), 1e-4 (0.650)." in text, "a rate whose runs all diverged is none"


def test_the_page_is_made_of_what_is_measured(study, training):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    measured = json.loads(training.RESULTS.read_text()) if training.RESULTS.is_file() else None
    assert (study.page(text, {"training": measured}) if measured else text) == text
    assert ("| `one-step` |" in text) == (measured is not None)


@pytest.mark.long
def test_a_trial_of_the_whole(training, tmp_path, monkeypatch):
    def command(*words: object) -> None:
        done = in_process(*map(str, words), cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]

    monkeypatch.setattr(training, "command", command)
    monkeypatch.setattr(training, "RATES", training.RATES[:2])
    results = tmp_path / "training.json"
    training.measure(tmp_path, small=True, results=results)
    found = json.loads(results.read_text())
    assert {(run["method"], run["seed"]) for run in found["runs"]} == {(name, s) for name in NAMES for s in (1, 2)}
    assert set(found["noise"]) == set(training.PLACES)
    assert {row["name"] for row in found["noise"]["start"]["methods"]} > set(NAMES)
    assert "| `one-step` |" in training.section(found)
