"""Runs side by side give what runs one after the other give, and the row order has a seed of its own."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from stabledllm.errors import UserError
from stabledllm.experiment import workers
from stabledllm.experiment.plan import _deciding, digest
from stabledllm.experiment.run import run_experiment
from tests.fakes.study import quiet, settings
from tests.fakes.trainer import make_trainer


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of an experiment that ran in this process, and its results."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_experiment(settings(folder), quiet)


CALLBACKS = """
from transformers import TrainerCallback

class Marks(TrainerCallback):
    def on_train_end(self, args, state, control, **_):
        open(args.output_dir + "/marked.txt", "w").write(str(state.global_step))
"""


@pytest.mark.long
@pytest.mark.processes
def test_two_jobs_give_the_same_runs_as_one(alone, tmp_path, monkeypatch):
    """With callbacks of the working directory, which every worker imports and which change no run."""
    _, one = alone
    (tmp_path / "callbacks_of_jobs.py").write_text(CALLBACKS)
    monkeypatch.chdir(tmp_path)
    two = settings(tmp_path / "two")
    two = two.model_copy(update={"base": two.base.model_copy(update={"callbacks": ["callbacks_of_jobs.Marks"]})})
    beside = run_experiment(two, quiet, jobs=2)
    marked = [path.read_text() for path in (tmp_path / "two").rglob("marked.txt")]
    assert marked == [str(two.base.steps)] * 4
    assert [(r["method"], r["seed"]) for r in beside["runs"]] == [(r["method"], r["seed"]) for r in one["runs"]]
    for mine, theirs in zip(beside["runs"], one["runs"], strict=True):
        # Another number of threads adds up in another order.
        assert mine["metrics"]["validation_nll"]["value"] == pytest.approx(
            theirs["metrics"]["validation_nll"]["value"], rel=1e-4
        )
    stored = json.loads((tmp_path / "two" / "results.json").read_text())
    assert stored["status"] == {"finished": 4, "planned": 4}


def test_a_plan_older_than_a_key_is_the_same_experiment(alone):
    folder, first = alone
    plan = json.loads((folder / "experiment.json").read_text())
    del plan["settings"]["base"]["image_decoding"], plan["settings"]["base"]["data"]["image"]
    (folder / "experiment.json").write_text(json.dumps(plan))
    assert run_experiment(settings(folder), quiet)["runs"] == first["runs"]
    with pytest.raises(UserError, match=r"expected base.steps=3 .* found base.steps=4"):
        run_experiment(settings(folder, steps=4), quiet)


@pytest.mark.processes
def test_a_run_that_fails_in_another_process_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "START", "fork")  # the test above has workers that start afresh
    folder = tmp_path / "runs" / "standard" / "seed-1"
    folder.mkdir(parents=True)
    (folder / "trained.json").write_text("broken")
    with pytest.raises(
        UserError, match=r"1 that failed, the first standard with seed 1 .*trained\.json: expected JSON"
    ):
        run_experiment(settings(tmp_path), quiet, jobs=2)
    with pytest.raises(UserError, match="at least 1 job"):
        run_experiment(settings(tmp_path / "none"), quiet, jobs=0)


def test_the_order_seed_fixes_the_rows_and_leaves_the_noise_to_vary(tmp_path):
    def run(name: str, **seeds):
        trainer = make_trainer(tmp_path / name, "standard", micro=8, accumulation=1, **seeds)
        order = [row for row, _ in trainer._get_train_sampler()]
        trainer.train()
        return order, {at: draw[0] for at, draw in trainer.recorded.draws.items()}

    first, second = (run(str(seed), noise_seed=seed, order_seed=5) for seed in (1, 2))
    other = run("other", noise_seed=1)
    assert first[0] == second[0]
    assert first[0] != other[0]
    assert first[1] == other[1], "the noise is a function of its own seed alone"
    assert all(t != second[1][at] for at, t in first[1].items())


def test_rows_that_are_given_and_where_they_are_stored(tmp_path):
    """Given tokens of an answer make other rows; the folder of the tokenised rows makes no other experiment."""
    row = SimpleNamespace(input_ids=[1, 2, 3], prompt_length=1, tail=0, hidden=0)
    given = SimpleNamespace(**vars(row), given=[2])
    plain, other = (digest(SimpleNamespace(train=[one], validation=[], test=[])) for one in (row, given))
    assert plain != other
    one = settings(tmp_path)
    data = one.base.data.model_copy(update={"cache": "elsewhere", "workers": 2})
    assert _deciding(one) == _deciding(one.model_copy(update={"base": one.base.model_copy(update={"data": data})}))
