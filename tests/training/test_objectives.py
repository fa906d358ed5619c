"""Objectives by name in training: no split of a step changes them, and the bound is reported beside their own value."""

from __future__ import annotations

import json

import pytest

from stabledllm.build import build_objective
from stabledllm.config.settings import ObjectiveSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.noise.objective import Objective
from stabledllm.training.run import train
from tests.checks.trajectory import assert_same_trajectory
from tests.fakes import tiny
from tests.fakes.run import small_run
from tests.fakes.trainer import make_trainer

CASES = [
    ("llada2", {}, "lowdisc+ppots+fixedcount+mirror", {}),
    ("bell", {}, "lowdisc+ppots+fixedcount", {}),
    ("cart", {}, "strats+mirror", {}),
    ("lift", {}, "lowdisc+fixedcount", {"packing": True}),
    ("gift", {}, "ppots+mirror", {"views_per_forward": 1}),
    ("fast-dllm", {}, "complement", {"block_size": 6}),
    pytest.param("bd3lm", {"window": [0.4, 0.9]}, "adaptive+strats", {"block_size": 6}, marks=pytest.mark.slow),
    pytest.param("sdar", {}, "standard", {"block_size": 6, "one_t": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    ("name", "keys", "method", "form"),
    CASES,
    ids=[*(["llada2", "bell", "cart", "lift", "gift", "fast-dllm", "bd3lm", "sdar"])],
)
def test_splitting_a_step_changes_nothing(tmp_path, name, keys, method, form):
    def run(micro: int, accumulation: int):
        trainer = make_trainer(
            tmp_path / f"{micro}", method, micro=micro, accumulation=accumulation,
            objective=build_objective(ObjectiveSettings(name=name, **keys)), **form,
        )  # fmt: skip
        trainer.train()
        trainer.recorded.forward_passes = trainer.statistics.forward_passes
        return trainer.recorded

    whole, split = run(8, 1), run(1, 8)
    assert split.draws == whole.draws
    assert split.forward_passes == whole.forward_passes
    assert_same_trajectory(split.losses, whole.losses)


def test_a_named_run_reports_the_bound_beside_its_own_value_and_goes_on_by_its_keys(tmp_path):
    told = []
    settings = small_run(tmp_path) | {"method": "lowdisc+fixedcount", "objective": {"name": "llada2"}}
    record = train(TrainSettings.model_validate(settings), say=told.append)
    own, bound = (record["metrics"][name]["value"] for name in ("validation_objective", "validation_nll"))
    assert own != pytest.approx(bound, rel=1e-3)
    text = " ".join(" ".join(told).split())
    assert "llada2 (weighting=unweighted normalization=masked window=[0.3,0.8])" in text
    assert "Its own trainer's noise is method=standard block_t=row" in text
    keys = {"weighting": "unweighted", "normalization": "masked", "window": [0.3, 0.8]}
    again = train(TrainSettings.model_validate(settings | {"objective": keys}), say=told.append)
    assert "already finished" in told[-1]
    assert again["metrics"] == record["metrics"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["objective"]["window"] == [0.3, 0.8]
    masked_mean = settings | {"objective": {"name": "masked-mean"}}
    with pytest.raises(UserError, match=r"with objective\.window=\[0\.3, 0\.8\], found objective\.window=None"):
        train(TrainSettings.model_validate(masked_mean), say=told.append)


def test_the_bound_has_no_second_value_and_the_identity_that_it_had(tmp_path):
    record = train(TrainSettings.model_validate(small_run(tmp_path)), say=lambda _: None)
    assert "validation_objective" not in record["metrics"]
    expected = {"weighting": "elbo", "power": None, "normalization": "row", "eps": 1e-3}
    assert record["identity"]["objective"] == expected
    for keys in ({"window": [0.3, 0.8]}, {"window": [0.3, 0.8], "corrected": True}):
        with pytest.raises(UserError, match=r"with objective\.window=None, found objective\.window=\[0\.3, 0\.8\]"):
            train(TrainSettings.model_validate(small_run(tmp_path) | {"objective": keys}), say=lambda _: None)


def test_a_density_of_another_window_is_refused(tmp_path):
    ppots = {"rows": 4, "rates": 4, "masks": 2, "starts": 2}
    settings = small_run(tmp_path) | {"method": "ppots", "ppots": ppots, "out": str(tmp_path / "a")}
    train(TrainSettings.model_validate(settings), say=lambda _: None)
    density = str(tmp_path / "a" / "p_of_t.json")
    other = settings | {"p_of_t": density, "objective": {"window": [0.3, 0.8]}, "out": str(tmp_path / "b")}
    with pytest.raises(UserError, match=r"expected a density fitted for objective.window=\(0.3, 0.8\), found None\.$"):
        train(TrainSettings.model_validate(other), say=lambda _: None)


@pytest.mark.parametrize(("tokens", "method", "per_row"), [("lift", "complement", None), ("gift", "mirror", 3)])
def test_a_run_that_chooses_tokens_resumes_bit_for_bit_and_counts_the_forwards_that_choose(
    tmp_path, tokens, method, per_row
):
    """The choice is made anew from the weights of the step, whose numbers are those of the run that was not cut."""

    def run(folder: str, **arguments):
        sure = tiny.model(32, initializer_range=0.5)  # of some tokens, and not of others
        objective = Objective(tokens=arguments.pop("tokens", tokens))
        return make_trainer(tmp_path / folder, method, steps=4, objective=objective, model=sure, **arguments)

    whole, cut, resumed = run("whole"), run("cut", save_strategy="steps", save_steps=2), run("cut")
    whole.train()
    cut.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert resumed.recorded.losses == whole.recorded.losses[2:]
    assert all(whole.recorded.draws[key] == draw for key, draw in resumed.recorded.draws.items())
    assert resumed.statistics.forward_passes == whole.statistics.forward_passes
    plain = run("plain", tokens="all")
    plain.train()
    rows = len(whole.recorded.draws)
    assert plain.recorded.draws.keys() == whole.recorded.draws.keys()
    if per_row:
        assert whole.statistics.forward_passes == per_row * rows
    else:
        views = plain.statistics.forward_passes
        assert views < whole.statistics.forward_passes <= 2 * views
    assert whole.recorded.draws != plain.recorded.draws


def test_a_choice_of_tokens_in_blocks_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match=r"^objective\.tokens: expected all beside block_size, found cart"):
        make_trainer(tmp_path, objective=Objective(tokens="cart"), block_size=6)
