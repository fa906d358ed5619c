"""Nothing is claimed before everything was checked; and no other experiment is taken for the one that is there."""

from __future__ import annotations

import json

import pytest

from stabledllm.config.settings import ExperimentSettings
from stabledllm.errors import NotFinite, UserError
from stabledllm.experiment import plan
from stabledllm.experiment import run as experiment_run
from stabledllm.experiment.checks import check_experiment
from stabledllm.experiment.run import run_experiment
from tests.cli.runner import assert_refused, in_process
from tests.fakes.streams import answers, write_folder, write_lines
from tests.fakes.study import BASE, quiet, settings

SMALL = ("base.data.train_rows=24", "base.data.validation_rows=6", "base.data.test_rows=2", "base.batch=4")
SMALL += ("base.steps=2", "base.eval_every=null", "seeds=[1]", "methods=[standard]", "out=x")
SMALL += ("base.decoding.length=8", "base.decoding.steps=4", "base.decoding.block=4")


@pytest.mark.parametrize(
    "wrong",
    [
        ["base.model=tinny"],
        ["base.model=./no/such/folder"],
        ["base.data.train=jsonl:missing.jsonl"],
        ["base.data.train=syntetic"],
        ["base.data.max_len=2"],
        ["base.data.validation=jsonl:missing.jsonl"],
        ["base.trainer.learning_rates=1"],
        ["base.trainer.optim=adamx"],
        ["base.trainer.lr_scheduler_type=liner"],
        ["methods=[standard,mirorr]"],
        ["methods=[standard,syrm+mirror]", "base.block_size=4"],
        ["methods=[standard,mirror]", "base.batch=3", "equal=compute"],
        ["methods=[standard,autoregressive]"],
        ["methods=[standard,ppots-gradient]", "base.block_size=4", "base.decoding.block=4"],
        ["base.micro_batch=3"],
        ["seeds=[1,2,1]"],
        ["methods=[standard,ppots+mirror,mirror+ppots]"],
        ["base.p_of_t=p.json", "methods=[ppots]"],
        ["base.block_size=5"],
        ["base.decoding.steps=3"],
        ["base.lora.rank=2", "base.model=new:tiny"],
        ["base.quantised=4bit"],
        ["base.objective.weighting=cosine", "methods=[standard,clipped]"],
    ],
)
def test_a_typo_anywhere_leaves_nothing_behind(tmp_path, wrong):
    assert_refused(in_process("experiment", "quickstart", *SMALL, *wrong, cwd=tmp_path))
    assert not (tmp_path / "x").exists()


def test_the_corrected_command_runs(tmp_path):
    assert_refused(in_process("experiment", "quickstart", *SMALL, "base.model=tinny", cwd=tmp_path), "tinny")
    assert in_process("experiment", "quickstart", *SMALL, cwd=tmp_path).returncode == 0


def test_what_goes_wrong_before_the_first_run_leaves_no_claim(tmp_path, monkeypatch):
    """A model whose losses are not finite is found by the untuned evaluation only."""

    def fails(*_):
        raise NotFinite("losses of TinyMDM: expected finite numbers, found nan (1 of 1).")

    real = experiment_run.validation_nll
    monkeypatch.setattr(experiment_run, "validation_nll", fails)
    with pytest.raises(UserError, match="finite"):
        run_experiment(settings(tmp_path / "x"), quiet)
    monkeypatch.setattr(experiment_run, "validation_nll", real)
    assert not (tmp_path / "x" / "experiment.json").exists()
    assert run_experiment(settings(tmp_path / "x", steps=2), quiet)["status"]["finished"] == 4


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    out = tmp_path_factory.mktemp("begun")
    tree = settings(out).model_copy(update={"methods": ["standard"], "seeds": [1]})
    run_experiment(tree, quiet)
    return tree


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 2}, "expected base.steps=3 as in the experiment that is there, found base.steps=2"),
        ({"trainer": {"learning_rate": 0.1}}, "expected base.trainer.learning_rate=[0-9e.-]+ .*learning_rate=0.1"),
        ({"eval_draws": 2}, "expected base.eval_draws=4 .* found base.eval_draws=2"),
        ({"data": BASE["data"] | {"pad_response_to": 8}}, "expected base.data.pad_response_to=1 .* found .*=8"),
        ({"lora": {"rank": 2}}, "expected base.lora=None .* found base.lora={"),
    ],
)
def test_another_experiment_is_refused_by_key_with_both_values(begun, changed, words):
    with pytest.raises(UserError, match=words):
        run_experiment(settings(begun.out, **changed), quiet)
    other = begun.model_copy(update={"equal": "steps"})
    with pytest.raises(UserError, match=r"expected equal='compute' .* found equal='steps'"):
        run_experiment(other, quiet)


@pytest.mark.parametrize(
    "changed",
    [
        {"micro_batch": 1},
        {"log_every": 2},
        {"save_every": 2},
        {"trainer": {"weight_decay": 0.1}},
        {"generate_batch": 1},
    ],
)
def test_what_decides_no_number_may_change(begun, changed):
    assert run_experiment(settings(begun.out, **changed).model_copy(
        update={"methods": ["standard"], "seeds": [1]}), quiet)["status"]["finished"] == 1  # fmt: skip


def test_the_same_rows_may_lie_elsewhere_and_secrets_are_no_difference(tmp_path):
    rows = [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(30)]
    data = {"validation_rows": 4, "system_prompt": "Use API_KEY=abcdefgh."}
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        wanted = settings(tmp_path / "x", data=data | {"train": f"jsonl:{tmp_path / name}"})
        run_experiment(wanted.model_copy(update={"methods": ["standard"], "seeds": [1]}), quiet)


def test_changed_rows_under_the_same_name_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"

    def write(answer: str) -> None:
        rows = [{"prompt": f"What is {i}?", "response": f"It is {i + (i == 7)}{answer}"} for i in range(30)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    wanted = settings(tmp_path / "x", data={"train": f"jsonl:{path}", "validation_rows": 4})
    write("")
    run_experiment(wanted, quiet)
    run_experiment(wanted, quiet)
    write("!")
    with pytest.raises(UserError, match=r"experiment\.json: expected the rows that .* begun on, found others"):
        run_experiment(wanted, quiet)


def test_other_versions_go_on_and_are_said(begun, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(plan, "versions", lambda: {"torch": "9.9"})
    results = run_experiment(begun, said.append)
    (told,) = [line for line in said if line.startswith("note: ")]
    assert "was begun with other versions of python (" in told
    assert "now 9.9)" in told
    assert results["status"]["finished"] == 1


def test_streams_are_checked_on_their_first_rows_and_known_by_their_files(tmp_path):
    folder = write_folder(tmp_path / "data")
    data = {
        "train": str(folder), "streaming": True, "max_len": 64,
        "validation": str(write_lines(tmp_path / "validation.jsonl", answers(100, 3))),
    }  # fmt: skip
    tree = {
        "base": {"data": data, "steps": 2, "ppots": {"rows": 8}}, "methods": ["standard", "ppots"], "equal": "steps",
        "out": str(tmp_path / "out"),
    }  # fmt: skip
    checked = ExperimentSettings.model_validate(tree)
    found = check_experiment(checked, quiet).data
    assert plan.digest(found) == plan.digest(check_experiment(checked, quiet).data)
    write_lines(folder / "more.jsonl", answers(200, 3))
    assert plan.digest(found) != plan.digest(check_experiment(checked, quiet).data)
    tree["methods"] = ["isad"]
    with pytest.raises(UserError, match=r"expected rows with data\.delimiters in their responses, found none"):
        check_experiment(ExperimentSettings.model_validate(tree), quiet)
