"""Mistakes in a recipe are told at once, all of them, with what to write, and before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from stabledllm.errors import Mistakes, UserError
from stabledllm.experiment.at_once import load_checked
from tests.cli.runner import ROOT, in_process

TOLD = [
    # keys of a run
    ("metod=ppots", "unknown key 'metod' (did you mean 'method'?); write method."),
    ("bach=8", "unknown key 'bach' (did you mean 'batch'?); write batch."),
    ("data.tran=x", "unknown key 'data.tran' (did you mean 'train'?); write data.train."),
    ("learning_rate=1e-3", "unknown key 'learning_rate'; write trainer.learning_rate."),
    ("lr=1e-3", "write trainer.learning_rate."),
    ("warmup=10", "write trainer.warmup_steps."),
    ("optimizer=adamw", "write trainer.optim."),
    ("wandb=true", "write trainer.report_to."),
    ("num_train_epochs=3", "unknown key 'num_train_epochs'; write epochs."),
    ("gradient_accumulation_steps=4", "write micro_batch (rows per device and forward) and batch"),
    ("output_dir=x", "unknown key 'output_dir'; write out."),
    ("max_length=512", "unknown key 'max_length'; write data.max_len."),
    ("data.max_length=512", "unknown key 'data.max_length'; write data.max_len."),
    ("train_file=x", "write data.train."),
    ("gen_length=128", "write decoding.length."),
    ("model_name_or_path=x", "write model."),
    ("torch_dtype=bfloat16", "write dtype."),
    ("load_in_4bit=true", "write quantised=4bit."),
    ("lora_r=8", "write lora.rank."),
    ("lora.r=8", "unknown key 'lora.r'; write lora.rank."),
    ("lora.rnk=8", "(did you mean 'rank'?); write lora.rank."),
    ("objective.weight=elbo", "write objective.weighting."),
    ("methods=[ppots]", "an experiment has it: write a YAML of 'base: {extends: THIS_RECIPE}'"),
    ("device=cpu", "docs/settings.md has every key."),
    ("lora.zzz=1", "its keys are rank, alpha, "),
    # keys of the Trainer
    ("trainer.logging_steps=5", "set by the recipe's own keys; write log_every instead."),
    ("trainer.max_steps=5", "write steps instead."),
    ("trainer.push_to_hub=true", "expected none, since a run sends nothing over the network"),
    ("trainer.lerning_rate=1", "(did you mean 'learning_rate'?)."),
    ("trainer.optim=adam", "(did you mean 'adamw_torch'?), found 'adam'."),
    ("trainer.lr_scheduler_type=cosin", "(did you mean 'cosine'?), found 'cosin'."),
    ("trainer.report_to=wandbb", "expected a back end, found 'wandbb' (did you mean 'wandb'?)."),
    ("trainer.run_name=x", "expected trainer.report_to beside it, found none."),
    ("trainer.dataloader_prefetch_factor=2", "expected trainer.dataloader_num_workers of at least 1 beside it"),
    ("trainer.deepspeed=zero.json", "expected a file, found nothing at 'zero.json'."),
    ("trainer.optim=sgd trainer.adam_beta1=0.5", "expected none, since 'sgd' does not use it, found '0.5'."),
    ("trainer.lr_scheduler_kwargs.num_cycle=2", "expected options of 'linear', found 'num_cycle', which has none."),
    ("trainer.lr_scheduler_type=cosine trainer.lr_scheduler_kwargs.num_cycle=2", "(did you mean 'num_cycles'?)."),
    (
        "trainer.lr_scheduler_type=warmup_stable_decay",
        "num_decay_steps': expected a value, as 'warmup_stable_decay' needs",
    ),
    ("trainer.bf16=true trainer.fp16=true", "found trainer.bf16 as well; leave one out."),
    # values
    ("trainer.learning_rate=fast", "expected a finite number, found 'fast'."),
    ("trainer.bf16=yes", "found 'yes'; write trainer.bf16=true."),
    ("data.every_turn=0", "found '0'; write data.every_turn=false."),
    ("batch=8.5", "expected a whole number, found '8.5'."),
    ("batch=0", "expected a number greater than or equal to 1, found 0."),
    ("eval_every=never", "found 'never'; write eval_every=null to go without."),
    ("save_every=0", "found 0; write save_every=null to go without."),
    ("data.validation_share=10%", "found '10%'; write data.validation_share=0.1."),
    ("data=jsonl:x", "found 'jsonl:x'; write data.train=jsonl:x."),
    ("data.format=shargpt", "(did you mean 'sharegpt'?) or null, found 'shargpt'."),
    ("dtype=bf16", "found 'bf16'; write dtype=bfloat16."),
    ("dtype=fp16", "found 'fp16'; write trainer.fp16=true."),
    ("lora=true", "found 'true'; write lora.rank=16, or RECIPE+lora."),
    ("lora.target_modules=q_proj,v_proj", "write lora.target_modules=[q_proj, v_proj]."),
    ("callbacks=my.Callback", "write callbacks=[my.Callback]."),
    ("out=", "key 'out': expected text of at least 1 character, found ''."),
    # methods, objective, decoding and what they need
    ("method=lowdisc,fixedcount", "unknown part 'lowdisc,fixedcount'; write lowdisc+fixedcount."),
    ("method=ppotz", "unknown part 'ppotz' (did you mean 'ppots'?)."),
    ("method=mirror+multisample", "'mirror' and 'multisample' contradict"),
    ("method=autoregressive", "expected a method that masks tokens"),
    ("objective.weighting=elb", "expected one of elbo, unweighted, power, cosine, found 'elb'."),
    ("objective.power=2", "objective.power: expected none for weighting 'elbo', found 2"),
    ("p_of_t=x.json", "key 'p_of_t': expected a method with ppots or adaptive, found 'standard'."),
    ("block_size=8 method=syrm", "'syrm' and block_size contradict"),
    ("decoding.length=100 decoding.block=8", "block 5 or 10 does, and so it does a length of 96 or 104."),
    ("quantised=4bit", "key 'quantised': expected 'lora' beside it, found a run that trains all of tiny."),
    ("lora.target_modules=[q_porj]", "no linear layer 'q_porj'"),
    # models and files
    ("model=tny", "found no such thing (did you mean 'tiny'?)."),
    ("model=new:./nothere", "model './nothere': expected a folder, found nothing there."),
    ("data.train=jsonl:trian.jsonl", "found nothing at 'trian.jsonl' (did you mean 'train.jsonl'?)."),
    ("data.validation=gsm8k:MISSING", "data 'gsm8k:MISSING': expected a file or folder, found nothing at 'MISSING'."),
    ("data.test=gsm9k", "found the unknown kind 'gsm9k' (did you mean 'gsm8k'?)."),
    # overrides
    ("batch", "override 'batch': expected key=value, found no '='; write batch=VALUE."),
    ("--batch", "write batch=VALUE, without dashes."),
    ("batch:8", "found no '='; write batch=8."),
    ("base.batch=8", "expected a key of one training run; write batch."),
    ("batch.size=8", "'batch' holds a value, not keys."),
]
"""Overrides of ``sft-synthetic``, separated by blanks, and the end of the one sentence that they give."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a file of data."""
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "1+1=?", "response": "2"}) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sentences(recipe: str, *overrides: str) -> list[str]:
    with pytest.raises(Mistakes) as told:
        load_checked(recipe, overrides)
    return told.value.sentences


@pytest.mark.parametrize(("overrides", "words"), TOLD, ids=[overrides for overrides, _ in TOLD])
def test_a_mistake_is_told_with_what_to_write(here, overrides, words):
    (told,) = sentences("sft-synthetic", *overrides.split())
    assert words in told
    assert told.endswith(".")


def test_all_are_told_and_none_that_follows_from_another(here):
    overrides = [
        "metod=ppots",
        "data.train=jsonl:MISSING",
        "model=tny",
        "trainer.learning_rate=fast",
        "batch",
        "p_of_t=x",
    ]
    keys = [
        re.search(r"'([^']*)'", told.replace("recipe 'sft-synthetic': ", ""))[1]
        for told in sentences("sft-synthetic", *overrides)
    ]
    assert keys == ["batch", "trainer.learning_rate", "metod", "p_of_t", "tny", "jsonl:MISSING"]
    assert len(sentences("sft-synthetic", "method=5", "p_of_t=x", "block_size=8")) == 1, "of an unknown method alone"


def test_a_value_that_is_wrong_gives_no_second_mistake_by_its_default(here):
    (told,) = sentences("sft-synthetic", "lora=yes", "quantised=4bit")
    assert "key 'lora'" in told
    (told,) = sentences("sft-synthetic", "decoding.length=many", "decoding.block=7")
    assert "key 'decoding.length'" in told


def test_an_experiments_values_that_are_wrong_give_no_second_mistake_either(here):
    (told,) = sentences("quickstart", "base.lora=yes", "base.quantised=4bit")
    assert "key 'base.lora'" in told


def test_one_value_is_one_mistake_whatever_kinds_it_might_have_had(here):
    recipe = here / "mine.yaml"
    recipe.write_text("extends: sft-synthetic\nlora:\n  target_modules: {a: b}\n")
    (told,) = sentences(str(recipe))
    assert "line 3: key 'lora.target_modules': expected 'all-linear'" in told


def test_a_back_end_that_is_not_installed_is_told(here, monkeypatch):
    monkeypatch.setattr("stabledllm.config.trainer_rules.find_spec", lambda name: None)
    (told,) = sentences("sft-synthetic", "trainer.report_to=[tensorboard,none]")
    assert told.endswith("found 'tensorboard', which is not; pip install tensorboard, or write none.")


def test_a_schedule_of_torchs_takes_its_options(here):
    overrides = ["trainer.lr_scheduler_type=reduce_lr_on_plateau", "trainer.lr_scheduler_kwargs.factor=0.5"]
    assert load_checked("sft-synthetic", [*overrides, "eval_every=2"]).trainer["lr_scheduler_kwargs"] == {"factor": 0.5}


def test_a_files_lines_are_named_and_an_experiments_runs_are_checked(here):
    recipe = here / "mine.yaml"
    recipe.write_text(
        "base:\n  extends: sft-synthetic\n  bach: 8\n  model: tny\n  trainer: {logging_steps: 5}\n"
        "methods: [mirrr, standard]\nlearning_rate: 1\nsteps: 5\n"
    )
    told = sentences(str(recipe), "base.lora.rnk=8", "base.data.train=jsonl:x")
    assert any("line 3: unknown key 'base.bach' (did you mean 'batch'?); write base.batch." in one for one in told)
    assert any("write base.log_every instead" in one for one in told)
    assert any("write base.lora.rank" in one for one in told)
    assert any("keys steps: expected under 'base:'" in one for one in told)
    assert any("unknown key 'learning_rate'; write base.trainer.learning_rate" in one for one in told)
    assert any("unknown part 'mirrr' (did you mean 'mirror'?)" in one for one in told)
    assert any("model 'tny'" in one for one in told)
    assert any("data 'jsonl:x'" in one for one in told)
    assert len(told) == 8


def test_what_is_in_order_is_read(here):
    assert load_checked("sft-synthetic", ["data.train=train.jsonl", "method=strats+mirror"]).method == "strats+mirror"
    assert load_checked("sft-synthetic", ["model=some/where", "data.train=hub:some/where"]).model == "some/where"
    assert len(load_checked("quickstart").methods) > 1
    with pytest.raises(UserError, match="did you mean 'sft-synthetic'"):
        load_checked("sft-syntetic")


def test_several_are_a_list_and_the_code_is_2(here):
    result = in_process("train", "sft-synthetic", "metod=ppots", "bach=8", cwd=here)
    lines = result.stderr.splitlines()
    assert result.returncode == 2
    assert lines[0] == "stabledllm: 2 mistakes; nothing was loaded or written:"
    assert [line[:5] for line in lines[1:]] == ["  1. ", "  2. "]
    assert [path.name for path in here.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sft-synthetic"], "use 'train', or write a YAML of 'base: {extends: sft-synthetic}' and 'methods: [...]'"),
        (["quickstart", "--jobs", "0"], "expected --jobs auto or a number of at least 1, found '0'"),
        (["quickstart", "base.model=tny"], "did you mean 'tiny'"),
    ],
)
def test_an_experiment_begins_with_it(here, arguments, words):
    result = in_process("experiment", *arguments, cwd=here)
    assert result.returncode == 2
    assert words in result.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "sft-synthetic", "method=ppotz", "model=tny", "data.train=jsonl:x", "trainer.run_name=x"],
        ["train", "sft-synthetic+lora", "lora.target_modules=[q]", "decoding.length=7", "decoding.block=4"],
        ["experiment", "quickstart", "base.bach=8", "--jobs", "2"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_torch_is_not_loaded_for_it(tmp_path, arguments):
    code = (
        "import sys\nfrom stabledllm.cli.main import main\n"
        f"sys.argv = ['stabledllm', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit as stop: assert stop.code == 2, stop.code\n"
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.startswith("stabledllm: "), done.stderr[-2000:]


def test_a_finished_run_is_said_though_its_model_is_gone_and_a_new_one_is_refused(tmp_path):
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "run.json").write_text("{}")
    given = [f"model={tmp_path / 'gone'}", f"out={tmp_path / 'done'}"]
    assert load_checked("sft-synthetic", given, repeated=True).model == str(tmp_path / "gone")
    for there, repeated in ((given, False), ([given[0], f"out={tmp_path / 'new'}"], True)):
        with pytest.raises(UserError, match="gone"):
            load_checked("sft-synthetic", there, repeated=repeated)
