"""A key that is typed for a command in which it does nothing is refused, or told of; in a recipe it may wait."""

from __future__ import annotations

import pytest

from stabledllm.config import load_recipe
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.experiment.idle import _EXPERIMENT, _NOT_FITTED, _RUN, idle_overrides
from stabledllm.experiment.planned import runs_of
from tests.cli.runner import assert_refused, in_process

HERE = {
    "sft-synthetic": [
        "ppots.rows=5", "ppots={rows: 5}", "ppots.check_proxy=true", "adaptive.every=3", "method_options.strata=4",
        "method_options.clip_low=0.2", "method_options.isad_delta=0.1", "method_options.mirror_below=0.5",
        "method_options.bell=3", "method_options.ema_bins=5", "init_seed=3", "epochs=2", "views_per_forward=1",
        "data.image.side=8",
        "data.text_fields=[a]", "data.short_share=0.1", "data.annotations=remove", "data.table=html",
        "data.cache=x", "data.workers=2", "data.shuffle_buffer=5",
        "data.every_turn=true", "data.delimiters=[x]", "data.syntax=html", "image_decoding.steps=3", "clip=x",
        "decoding.seed=3", "data.validation_share=0.2",
        "data.format=alpaca", "data.columns={prompt: Q}", "data.split=x", "data.subset=x",
        "average.snapshots=4", "average.on_cpu=true",
    ],
    "sft-scenes": ["data.system_prompt=x", "data.few_shot=1", "decoding.length=8"],
    "pretrain/text": [
        "untuned=false", "decoding.length=8", "image_decoding.steps=3", "generate_batch=3", "data.test_rows=3",
    ],
    "quickstart": [
        "base.seed=3", "base.method=mirror", "base.out=x", "base.adaptive.every=3",
        "base.method_options.strata=3", "base.data.table=html",
    ],
}  # fmt: skip
ACTS = {
    "sft-synthetic": [
        ["method=ppots", "ppots.rows=5"], ["method=ppots-head", "ppots.check_proxy=true"],
        ["method=adaptive", "adaptive.every=3"], ["method=strats+ema", "method_options.strata=4"],
        ["method=strats+ema", "method_options.ema_bins=5"], ["model=new:tiny", "init_seed=3"],
        ["method=bell", "method_options.bell=3"],
        ["steps=null", "epochs=2"], ["method=mirror", "views_per_forward=1"], ["data.test_rows=3"],
        ["data.test_rows=0"],
        ["decoding.length=64", "decoding.steps=64"], ["generate_batch=3"], ["data.few_shot=1"],
        ["decoding.temperature=0.5", "decoding.seed=3"], ["data.train=x.jsonl", "data.format=alpaca"],
        ["average.power=[0.1]", "average.snapshots=4"], ["average.ema=[0.9]", "average.on_cpu=true"],
        ["data.streaming=true", "data.shuffle_buffer=5"],
        ["data.train=alpaca:x", "data.every_turn=true"], ["data.train=hub:a/b", "data.split=x", "data.subset=y"],
    ],
    "quickstart": [["base.ppots.rows=5"], ["base.steps=3"], ["base.method_options.mirror_below=0.5"]],
}  # fmt: skip


REFUSED = ("init_seed", "epochs", "base.seed", "base.method", "base.out", "average.snapshots", "average.on_cpu")


@pytest.mark.parametrize(("recipe", "override"), [(name, one) for name, these in HERE.items() for one in these])
def test_a_key_without_effect_is_refused_or_told_of(recipe, override):
    key, settings = override.partition("=")[0], load_recipe(recipe, [override])
    if key in REFUSED:
        with pytest.raises(UserError, match=f"key '{key}'"):
            idle_overrides(settings, runs_of(settings), [override])
        return
    (said,) = idle_overrides(settings, runs_of(settings), [override])
    assert said.startswith(f"note: key '{key}' does nothing here: it needs ")


def test_test_rows_of_which_none_are_wanted_are_told_of():
    overrides = ["data.test=x.jsonl", "data.test_rows=0"]
    settings = load_recipe("sft-synthetic", overrides)
    (said,) = idle_overrides(settings, runs_of(settings), overrides)
    assert said == "note: key 'data.test' does nothing here: it needs rows of it to test (data.test_rows above 0)"


@pytest.mark.parametrize(("recipe", "overrides"), [(name, one) for name, these in ACTS.items() for one in these])
def test_a_key_that_acts_is_taken(recipe, overrides):
    settings = load_recipe(recipe, overrides)
    assert idle_overrides(settings, runs_of(settings), overrides) == []


def test_each_rule_refuses_somewhere():
    tried = {one.partition("=")[0].removeprefix("base.") for these in HERE.values() for one in these}
    for name in _RUN:
        covered = any(one == name or f"{one}.".startswith(name) for one in tried)
        assert covered or name in (
            "ppots.design",
            "method_options.clip_high",
            "data.validation_share",
            "decoding.block",
            "data.validation_rows",
            "eval_every",
            "eval_draws",
            "spikes.keep",  # refused where a recipe is read: tests/training/test_spikes.py
        )


@pytest.mark.parametrize("override", ["eval_every=5", "eval_draws=2", "data.validation_rows=8"])
def test_nothing_is_evaluated_without_rows_for_it(tmp_path, override):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    typed = [f"data.train={tmp_path / 'rows.jsonl'}", "data.validation_share=0", override]
    settings = load_recipe("sft-synthetic", typed)
    (said,) = idle_overrides(settings, runs_of(settings), typed)
    assert said.startswith(f"note: key '{override.partition('=')[0]}' does nothing here: it needs rows to evaluate on")


def test_every_rule_names_a_key():
    for name in (*_RUN, *_NOT_FITTED):
        kind = TrainSettings
        for part in name.rstrip(".").split("."):
            assert part in kind.model_fields, name
            kind = kind.model_fields[part].annotation
    for name in _EXPERIMENT:
        assert name.removeprefix("base.") in TrainSettings.model_fields
    assert set(_EXPERIMENT.values()) <= set(ExperimentSettings.model_fields)


LIFT = "decompose", "--gradient", "objective.name=lift", "--model", "no/where", "--methods"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "sft-synthetic", "epochs=3"], ["epochs", "steps=null"]),
        (["validate", "sft-synthetic", "epochs=3"], ["epochs", "steps=null"]),
        (["experiment", "quickstart", "base.seed=3"], ["base.seed", "seeds"]),
        (["fit", "trainer.learning_rate=1"], ["trainer.learning_rate", "that 'fit' uses"]),
        (["fit", "steps=3"], ["steps", "that 'fit' uses"]),
        (["decompose", "grad.rows=8"], ["grad.rows", "--gradient"]),
        (["decompose", "init_seed=8"], ["init_seed", "model=new:"]),
        ([*LIFT, "lowdisc,multisample", "grad.masks=4"], ["grad.masks", "as fixedcount"]),
        ([*LIFT, "lowdisc,fixedcount", "grad.view_rows=8"], ["grad.view_rows", "as mirror"]),
        ([*LIFT, "lowdisc,mirror", "grad.split_rows=8"], ["grad.split_rows", "tokens=all or cart"]),
    ],
)
def test_every_command_says_so_before_it_works(tmp_path, arguments, words):
    assert_refused(in_process(*arguments, cwd=tmp_path), *words)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["validate", "sft-synthetic", "ppots.rows=5"], "'ppots.rows'"),
        (["train", "sft-synthetic", "adaptive.every=5", "model=no/where"], "'adaptive.every'"),
        (["decompose", "data.test_rows=8", "--model", "no/where"], "'data.test_rows'"),
        (["decompose", "--methods", "standard", "method_options.strata=8", "--model", "no/where"], "strats"),
        (["eval", "--set", "data.train_rows=8", "--model", "no/where"], "'data.train_rows'"),
        (["eval", "--set", "data.table=html", "--model", "no/where"], "hitab"),
        (["fit", "data.validation_rows=8", "--model", "no/where"], "'data.validation_rows'"),
    ],
)
def test_every_command_tells_before_it_works(tmp_path, arguments, word):
    result = in_process(*arguments, cwd=tmp_path)
    assert "does nothing here" in result.stdout.splitlines()[0], result.stderr
    assert word in result.stdout.splitlines()[0]


@pytest.mark.parametrize("arguments", [("fixedcount", "grad.masks=4"), ("lowdisc,mirror", "grad.view_rows=8")])
def test_masks_of_a_methods_own_use_their_keys_where_the_model_chooses(tmp_path, arguments):
    assert_refused(in_process(*LIFT, *arguments, cwd=tmp_path), "no/where")
