"""What comes with a run's folder to each command, beneath what is given, and how it is told."""

from __future__ import annotations

import pytest

from stabledllm.config.from_run import _decoding, with_run
from stabledllm.config.recipe import check, load_recipe, read_recipe
from stabledllm.config.settings import DecomposeSettings, EvalSettings, GenerateSettings, TrainSettings
from stabledllm.errors import Mistakes
from stabledllm.experiment.commands_at_once import check_command
from tests.fakes.runs import write_run

CONFIG = TrainSettings.model_validate(
    {
        "data": {
            "train": "jsonl:own.jsonl",
            "columns": {"prompt": "frage"},
            "pad_response_to": 40,
            "max_len": 300,
            "validation_rows": 50,
            "cache": "somewhere",
        },
        "dtype": "bfloat16",
        "end_token": "<end>",
        "trust_remote_code": True,
        "allow_pickle": True,
        "objective": {"weighting": "power", "power": 0.5},
        "decoding": {"length": 40, "steps": 20, "block": 8, "temperature": 0.5},
        "eval_draws": 6,
    }
).model_dump()
LOADED = {"dtype": "bfloat16", "end_token": "<end>"}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", config=CONFIG)


def read(run, kind, **given):
    tree, told = with_run({"model": str(run), **given}, kind)
    return check(tree, kind, "test"), told


def test_eval_gets_the_rows_that_were_held_out_and_the_way_they_were_evaluated(run):
    settings, (line,) = read(run, EvalSettings)
    assert settings.model == str(run / "model")
    assert settings.held_out
    assert settings.data.model_dump() == CONFIG["data"] | {"cache": None}
    assert settings.decoding.model_dump() == CONFIG["decoding"]
    assert settings.objective.model_dump() == CONFIG["objective"]
    assert settings.draws == 6
    assert (settings.dtype, settings.end_token) == ("bfloat16", "<end>")
    assert not settings.trust_remote_code, "a record must not be able to run code"
    assert not settings.allow_pickle
    assert line == (
        f"from {run}: data jsonl:own.jsonl (the rows that it held out), padding 40, decoding 40 tokens in 20 steps, "
        f"blocks of 8, temperature=0.5, data.columns={{'prompt': 'frage'}}, data.max_len=300, dtype=bfloat16, "
        f"end_token=<end>, objective.weighting=power, objective.power=0.5, draws=6"
    )


def test_given_rows_replace_the_runs_and_keep_its_padding(run):
    settings, (line,) = read(run, EvalSettings, data={"train": "jsonl:other.jsonl", "max_len": 99})
    assert not settings.held_out
    assert (settings.data.train, settings.data.validation, settings.data.test) == ("jsonl:other.jsonl", None, None)
    assert (settings.data.pad_response_to, settings.data.max_len) == (40, 99)
    assert settings.data.columns == {"prompt": "frage"}
    assert settings.rows == 50
    assert line.startswith(f"from {run}: padding 40, decoding 40 tokens")
    assert "max_len" not in line
    assert read(run, EvalSettings, data={"train": "jsonl:x", "pad_response_to": 1}, rows=7)[0].rows == 7
    assert read(run, EvalSettings, data={"columns": {"prompt": "p"}})[0].data.columns == {"prompt": "p"}


def test_the_worked_examples_stay_those_of_the_run(tmp_path):
    data = CONFIG["data"] | {"few_shot": 2, "train": "gsm8k:train.jsonl"}
    run = write_run(tmp_path / "shots", config=CONFIG | {"data": data})
    given = {"train": "gsm8k:test.jsonl"}
    settings, _ = read(run, EvalSettings, data=given)
    assert (settings.data.train, settings.data.test) == ("gsm8k:train.jsonl", "gsm8k:test.jsonl")
    assert given == {"train": "gsm8k:test.jsonl"}, "the given keys stay as they are"
    assert not settings.held_out
    assert read(run, GenerateSettings)[0].data.train == "gsm8k:train.jsonl"
    assert read(run, EvalSettings, data=given | {"few_shot": 0})[0].data.train == "gsm8k:test.jsonl"


def test_generate_gets_decoding_and_prompts_but_no_rows(run):
    settings, (line,) = read(run, GenerateSettings)
    assert settings.data.train == GenerateSettings().data.train
    assert settings.data.columns == {"prompt": "frage"}
    assert settings.decoding.model_dump() == CONFIG["decoding"]
    assert line.startswith(f"from {run}: decoding 40 tokens in 20 steps, blocks of 8, temperature=0.5, ")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (40, 20, 8)),
        ({"steps": 10}, (40, 10, 8)),
        ({"block": 20}, (40, 20, 20)),
        ({"block": 1}, (40, 40, 1)),
        ({"length": 80}, (80, 60, 8)),
        ({"length": 12}, (12, 64, 6)),
        ({"length": 16, "steps": 8, "block": 4}, (16, 8, 4)),
    ],
)
def test_given_decoding_counts_and_what_no_longer_fits_is_chosen_anew(run, given, expected):
    decoding = read(run, GenerateSettings, decoding=given)[0].decoding
    assert (decoding.length, decoding.steps, decoding.block) == expected
    assert decoding.temperature == 0.5


def test_a_runs_sub_blocks_stay_with_its_blocks():
    own = {"length": 32, "steps": 8, "block": 8, "sub_block": 4}
    assert _decoding(own, {"length": 64, "block": 8}) == {"length": 32, "block": 8, "sub_block": 4}
    assert _decoding(own, {"block": 4}) == {"length": 32, "steps": 8, "block": 8}
    assert "steps" not in _decoding(own, {"sub_block": 2}), "16 sub-blocks do not share 8 steps"


@pytest.mark.parametrize("kind", [DecomposeSettings, TrainSettings])
def test_measuring_and_training_get_the_rows_and_the_objective(run, kind):
    settings, (line,) = read(run, kind)
    assert settings.data.model_dump() == CONFIG["data"] | {"cache": None}
    assert settings.objective.model_dump() == CONFIG["objective"]
    assert f"from {run}: data jsonl:own.jsonl, padding 40" in line
    other = read(run, kind, objective={"weighting": "elbo"})[0].objective
    assert (other.weighting, other.power) == ("elbo", None)


def test_blocks_come_with_a_run_to_fit_and_train(tmp_path):
    config = TrainSettings(block_size=4, decoding={"length": 16, "block": 4}).model_dump()
    run = write_run(tmp_path / "blocks", config=config)
    settings, _ = read(run, TrainSettings)
    assert (settings.block_size, settings.decoding.block) == (4, 4)


def test_a_record_of_another_version_is_read_as_far_as_it_is_known(tmp_path):
    config = {"data": {"train": "synthetic:easy", "was_there": 1}, "decoding": {"length": 8, "old": 2}}
    settings, _ = read(write_run(tmp_path / "old", config=config), EvalSettings)
    assert (settings.data.train, settings.decoding.length) == ("synthetic:easy", 8)
    bare = write_run(tmp_path / "bare", record=None)
    assert read(bare, EvalSettings)[1] == [
        f"from {bare}: the model alone, since the run's settings were not kept with it"
    ]


def test_other_models_bring_nothing():
    tree = {"model": "tiny", "data": {"train": "synthetic"}}
    assert with_run(tree, EvalSettings) == (tree, [])
    assert with_run({}, EvalSettings) == ({}, [])


@pytest.mark.parametrize("experiment", [False, True])
def test_a_recipe_gets_what_it_does_not_say_from_the_run_that_it_goes_on_from(run, tmp_path, experiment):
    lines = [f"model: {run}", "steps: 3", "decoding: {length: 8}"]
    text = "methods: [standard]\nbase:\n" + "".join(f"  {line}\n" for line in lines) if experiment else "\n".join(lines)
    (tmp_path / "recipe.yaml").write_text(text)
    settings = load_recipe(str(tmp_path / "recipe.yaml"))
    base = settings.base if experiment else settings
    assert base.model == str(run / "model")
    assert (base.data.train, base.data.pad_response_to, base.steps) == ("jsonl:own.jsonl", 40, 3)
    assert (base.decoding.length, base.decoding.temperature) == (8, 0.5)
    assert read_recipe(str(tmp_path / "recipe.yaml")).told[0].startswith(f"from {run}: data jsonl:own.jsonl")


def test_a_recipe_on_a_run_that_has_not_ended_tells_that_beside_its_other_mistakes(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "progress.json").write_text("{}")
    with pytest.raises(Mistakes) as refused:
        load_recipe("sft-synthetic", [f"model={tmp_path / 'run'}", "stps=3"])
    assert "expected a run that has ended" in str(refused.value)
    assert "stps" in str(refused.value)


def test_no_more_steps_are_told_than_there_are_tokens_to_decide():
    assert GenerateSettings(decoding={"length": 4}).decoding.steps == 64, "which a folder of results keeps as it was"
    assert GenerateSettings(decoding={"length": 4}).decoding.calls == 4
    assert GenerateSettings(decoding={"length": 4, "schedule": "origin"}).decoding.calls == 64


def test_of_decoding_only_what_is_not_given_is_told(run):
    (line,) = [one for one in read(run, GenerateSettings, decoding={"length": 8})[1] if one.startswith("from")]
    assert ": decoding blocks of 8, temperature=0.5, " in line
    given = {"length": 8, "steps": 4, "block": 4, "temperature": 1.0}
    (line,) = [one for one in read(run, GenerateSettings, decoding=given)[1] if one.startswith("from")]
    assert "decoding" not in line.partition(": ")[2]


def test_what_a_run_was_trained_on_says_nothing_of_what_its_model_is_trained_on_next(tmp_path):
    config = CONFIG | {"objective": {"kind": "dpo", "eps": 0.01}, "data": CONFIG["data"] | {"format": "preference"}}
    run = write_run(tmp_path / "pairs", config=config)
    settings, (line,) = read(run, TrainSettings, data={"train": "jsonl:answers.jsonl"})
    assert (settings.objective.kind, settings.objective.eps, settings.data.format) == ("masked", 0.01, None)
    assert "kind" not in line
    assert "format" not in line
    again, _ = read(run, TrainSettings, objective={"kind": "dpo"})
    assert again.data.format == "preference"
    assert read(run, EvalSettings)[0].data.format == "preference", "whose rows are read as they were"


def of_responses(folder, kind: str, **more) -> dict:
    """The settings of a run on responses."""
    own = {"objective": {"kind": kind}, "model": "runs/sft/model", "data": {"train": "jsonl:rows.jsonl"}}
    write_run(folder / "run", config=TrainSettings.model_validate(own | {kind: more}).model_dump())
    return folder / "run"


def test_a_run_on_preferences_is_measured_against_what_it_began_with(tmp_path):
    run = of_responses(tmp_path, "dpo", beta=0.2, budget=16)
    settings, (line,) = read(run, DecomposeSettings)
    assert (settings.objective.kind, settings.dpo.beta, settings.dpo.reference) == ("dpo", 0.2, "runs/sft/model")
    assert settings.dpo.budget == DecomposeSettings().dpo.budget, "of the measurement, not of the run"
    assert "dpo.reference=runs/sft/model" in line
    given, _ = read(run, DecomposeSettings, dpo={"reference": "other"})
    assert given.dpo.reference == "other"
    named = of_responses(tmp_path / "other", "dpo", reference="ref")
    assert read(named, DecomposeSettings)[0].dpo.reference == "ref"


def test_a_run_on_rewards_is_measured_with_its_rewards_and_rollouts(tmp_path):
    run = of_responses(tmp_path, "grpo", group=8, beta=0.1, inner=3, rollout={"length": 16}, estimator="espo")
    grpo = read(run, DecomposeSettings)[0].grpo
    assert (grpo.group, grpo.rollout.length, grpo.beta, grpo.reference) == (8, 16, 0.1, "runs/sft/model")
    assert not {"inner", "estimator", "budget"} & grpo.model_fields_set
    assert read(of_responses(tmp_path / "other", "grpo", group=6), DecomposeSettings)[0].grpo.reference is None


def test_the_code_of_a_runs_reward_is_typed_again(tmp_path):
    run = of_responses(tmp_path, "grpo", reward=["rewards.py:short"])
    with pytest.raises(Mistakes, match="whose code is run, to be named on the command line"):
        check_command("decompose", {"model": str(run)}, ["data.train=synthetic"])
    settings = check_command(
        "decompose", {"model": str(run)}, ["data.train=synthetic", "grpo.reward=[task]", "grpo.prompts=3"]
    )
    assert settings.grpo.reward == ["task"]


def test_another_objective_leaves_them_out(tmp_path):
    run = of_responses(tmp_path, "dpo", beta=0.2)
    settings, _ = read(run, DecomposeSettings, objective={"kind": "masked"})
    assert "dpo" not in settings.model_fields_set
