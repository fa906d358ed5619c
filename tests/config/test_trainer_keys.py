"""``trainer.*``: every field of the installed TrainingArguments is honoured, or refused by name; all are checked."""

from __future__ import annotations

import enum
import types
import typing
from typing import Any, Literal, get_args, get_origin

import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from stabledllm.config import load_recipe
from stabledllm.config.trainer_keys import OURS, REFUSED, Optimizer, Scheduler, TrainerSettings, refusal
from stabledllm.config.trainer_rules import RULES
from stabledllm.errors import UserError
from stabledllm.experiment.validation import validate
from tests.cli.runner import assert_refused, in_process
from tests.fakes.trainer import make_trainer

FIELDS = TrainingArguments.__dataclass_fields__
HONOURED = TrainerSettings.model_fields


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as found:
        validate(load_recipe("sft-synthetic", overrides))
    assert "\n" not in str(found.value)
    return str(found.value)


def test_every_field_is_in_one_table():
    tables = [set(HONOURED), set(OURS), set(REFUSED)]
    assert set().union(*tables) == set(FIELDS), "a new field: see whether a run honours it, and put it into its table"
    assert sum(map(len, tables)) == len(FIELDS), "in two tables"
    assert set(RULES) <= set(HONOURED)


def test_a_field_of_a_newer_version_is_refused():
    assert "not known here to have an effect" in refusal("smoothing_of_the_future")
    assert "did you mean 'learning_rate'" in refusal("learning_rat")


@pytest.mark.parametrize("name", [*OURS, *REFUSED])
def test_what_is_not_honoured_is_refused_by_name(name):
    said = refused(f"trainer.{name}=1")
    assert f"key 'trainer.{name}'" in said
    assert (f"write {OURS[name]} instead" if name in OURS else REFUSED[name]) in said


def test_the_lists_of_names_are_those_of_transformers():
    assert set(get_args(Optimizer)) == {name.value for name in OptimizerNames}
    assert set(get_args(Scheduler)) == {name.value for name in SchedulerType}


def _kinds(annotation: Any) -> set:
    """Plain kinds of value that a type takes."""
    if get_origin(annotation) is typing.Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return {str}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {str}
    return {get_origin(annotation) or annotation}


@pytest.mark.parametrize("name", HONOURED)
def test_ours_are_the_kinds_that_transformers_takes(name):
    theirs = _kinds(FIELDS[name].type)
    extra = _kinds(HONOURED[name].annotation) - theirs
    assert not extra, f"{name}: {extra}, transformers takes {theirs}"


def _wrong(annotation: Any) -> list[str]:
    kinds = _kinds(annotation)
    wrong = [] if str in kinds and get_origin(annotation) is not Literal else ["soon"]
    if kinds & {int, float} and str not in kinds:
        wrong += ["true", "-3", "nan", ".inf", "[1]", "1e999", "9" * 5000]
    if kinds == {bool} or kinds == {bool, types.NoneType}:
        wrong += ["1", "yes", "maybe", "[true]"]
    return wrong + ([] if types.NoneType in kinds or str in kinds else ["null"])


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, field in HONOURED.items() for value in _wrong(field.annotation)]
)
def test_a_value_of_another_kind_is_refused_before_anything_is_loaded(name, value):
    with pytest.raises(UserError) as found:
        load_recipe("sft-synthetic", [f"trainer.{name}={value}"])
    assert f"key 'trainer.{name}'" in str(found.value)
    assert len(str(found.value)) < 900


def test_train_refuses_what_validate_refuses(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("stabledllm.training.run.build_model", never)
    monkeypatch.setattr("stabledllm.training.run.load_bundle", never)
    for override in (
        "trainer.learning_rate=fast",
        "trainer.bf16=maybe",
        "trainer.optim=adam",
        "trainer.seed=1",
        "trainer.lr_scheduler_kwargs={wrong: 1}",
        "trainer.report_to=nobody",
        "trainer.adam_beta1=1",
    ):
        said = [in_process(name, "sft-synthetic", override, "out=out", cwd=tmp_path) for name in ("validate", "train")]
        for result in said:
            assert_refused(result, "key 'trainer.")
        assert said[0].stderr == said[1].stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.run_name=x"], ["trainer.run_name", "report_to"]),
        (["trainer.eval_delay=3"], ["trainer.eval_delay", "eval_every"]),
        (["save_every=null", "trainer.save_total_limit=1"], ["save_total_limit", "save_every"]),
        (["trainer.gradient_checkpointing_kwargs={use_reentrant: false}"], ["gradient_checkpointing=true"]),
        (["trainer.dataloader_prefetch_factor=2"], ["dataloader_num_workers"]),
        (["trainer.dataloader_persistent_workers=true"], ["dataloader_num_workers"]),
        (["trainer.dataloader_multiprocessing_context=fork"], ["dataloader_num_workers"]),
        (["trainer.torch_compile=false", "trainer.torch_compile_mode=default"], ["torch_compile_mode"]),
        (["trainer.lr_scheduler_type=constant", "trainer.warmup_steps=5"], ["warmup_steps", "constant_with_warmup"]),
        (["trainer.gradient_checkpointing=true", "trainer.activation_checkpointing=false"], ["found both"]),
        (["trainer.optim=sgd", "trainer.adam_beta1=0.5"], ["trainer.adam_beta1", "'sgd' does not use it"]),
        (["trainer.optim=adafactor", "trainer.adam_epsilon=1e-3"], ["trainer.adam_epsilon", "'adafactor'"]),
        (["trainer.optim_args=momentum=0.9"], ["trainer.optim_args", "does not use it"]),
        (["trainer.optim=sgd", "trainer.optim_args=momentum"], ["trainer.optim_args", "found 'momentum'"]),
        (["trainer.optim_target_modules=[q]"], ["trainer.optim_target_modules", "does not use it"]),
        (["trainer.lr_scheduler_kwargs={num_cycles: 2}"], ["trainer.lr_scheduler_kwargs", "num_cycles"]),
        (
            ["trainer.lr_scheduler_type=cosine", "trainer.lr_scheduler_kwargs={num_cycles: many}"],
            ["trainer.lr_scheduler_kwargs"],
        ),
        (["trainer.lr_scheduler_type=reduce_lr_on_plateau"], ["eval strategy"]),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(overrides, words):
    said = refused("eval_every=null", *overrides)
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.optim=sgd", "trainer.optim_args=momentum=0.9", "trainer.learning_rate=5e-5"],
        ["trainer.lr_scheduler_type=cosine", "trainer.lr_scheduler_kwargs.num_cycles=2", "trainer.warmup_steps=0.1"],
        ["trainer.learning_rate=1e30", "trainer.max_grad_norm=0"],
        ["trainer.report_to=none", "trainer.log_level=error", "trainer.ddp_timeout=3_600"],
        ["trainer.dataloader_num_workers=1", "trainer.dataloader_prefetch_factor=2"],
        ["trainer.adam_beta2=0.95", "trainer.adam_epsilon=.5", "trainer.weight_decay=+0"],
    ],
)
def test_what_acts_is_taken(overrides):
    assert validate(load_recipe("sft-synthetic", overrides))


def _history(tmp_path, **arguments) -> tuple[list[float], list[dict]]:
    trainer = make_trainer(tmp_path / "-".join(arguments or ["plain"]), steps=4, **arguments)
    trainer.train()
    return trainer.recorded.losses, trainer.state.log_history


def test_the_surprising_ones_act(tmp_path):
    losses, _ = _history(tmp_path)
    first, log = _history(tmp_path, eval_on_start=True)
    assert first == losses
    assert [line["step"] for line in log if "eval_loss" in line] == [0]
    noisy, noisy_log = _history(tmp_path, neftune_noise_alpha=5.0, eval_on_start=True)
    assert noisy != losses
    assert noisy_log[0]["eval_loss"] == log[0]["eval_loss"], "the noise is of training alone"
    _, log = _history(tmp_path, eval_strategy="steps", eval_steps=1, eval_delay=3)
    assert [line["step"] for line in log if "eval_loss" in line] == [3, 4]
    _, log = _history(
        tmp_path, eval_strategy="steps", eval_steps=1, lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "threshold": 10.0},
    )  # fmt: skip
    rates = [line["learning_rate"] for line in log if "learning_rate" in line]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6])
    assert _history(tmp_path, max_grad_norm=1e-3, optim="sgd")[0] != _history(tmp_path, optim="sgd")[0]


@pytest.mark.long
@pytest.mark.slow
def test_what_changes_no_number_changes_none(tmp_path):
    losses, _ = _history(tmp_path)
    for arguments in (
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2},
    ):
        assert _history(tmp_path, **arguments)[0] == losses
