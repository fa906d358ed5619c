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
    ("xyzzy=1", "docs/settings.md has every key."),
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
    ("data.train_rows=0", "found 0; data.train_rows=null is no limit."),
    ("data.test_rows=none", "found 'none'; data.test_rows=null is no limit, and 0 none."),
    ("data.validation_rows=none", "found 'none'; write data.validation_share=0 to train on every row."),
    ("average.ema=[0.9,x]", "expected a finite number, found 'x' in the list."),
    ("average.ema=[0.9,[1]]", "key 'average.ema.1': expected a number, found a list."),
    ("method=lowdisc+ppots objective.eps=0", "ppots: expected objective.eps above 0, found 0: the variance of method"),
    ("steps=0", "found 0; steps=null is as many as 'epochs' gives."),
    ("decoding.steps=0", "found 0; decoding.steps=null is the usual number."),
    ("micro_batch=0", "found 0; micro_batch=null is a device's whole share of the batch."),
    ("data.validation_share=10%", "found '10%'; write data.validation_share=0.1."),
    ("data=jsonl:x", "found 'jsonl:x'; write data.train=jsonl:x."),
    ("data.format=shargpt", "(did you mean 'sharegpt'?) or null, found 'shargpt'."),
    ("dtype=bf16", "found 'bf16'; write dtype=bfloat16."),
    ("dtype=fp16", "found 'fp16'; write trainer.fp16=true."),
    ("lora=true", "found 'true'; write lora.rank=16, or RECIPE+lora."),
    ("lora.target_modules=q_proj,v_proj", "write lora.target_modules=[q_proj, v_proj]."),
    ("callbacks=my.Callback", "write callbacks=[my.Callback]."),
    ("out=", "expected text of at least 1 character, found ''; leave the key out for its default."),
    # methods, objective, decoding and what they need
    ("method=lowdisc,fixedcount", "unknown part 'lowdisc,fixedcount'; write lowdisc+fixedcount."),
    ("method=ppotz", "unknown part 'ppotz' (did you mean 'ppots'?)."),
    ("method=mirror+multisample", "'mirror' and 'multisample' contradict"),
    ("method=autoregressive", "expected a method that masks tokens"),
    (
        "objective.weighting=elb",
        "unweighted, power, cosine, bell, found 'elb'; write objective.weighting=elbo.",
    ),
    ("objective.power=2", "objective.power: expected none for weighting 'elbo', found 2"),
    ("p_of_t=x.json", "key 'p_of_t': expected a method with ppots or adaptive, found 'standard'."),
    ("block_size=8 method=syrm", "'syrm' and block_size contradict"),
    ("decoding.length=100 decoding.block=8", "block 5 or 10 does, and so it does a length of 96 or 104."),
    (
        "quantised=4bit",
        "'lora' beside it, found a run that trains all of tiny; write RECIPE+lora.",
    ),
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
    ("batch=8 batch=16", "override 'batch': expected each key once, found it twice (8 and 16); leave one out."),
    ("lora.rank=8 lora=null", "override 'lora': expected it before 'lora.rank', which it undoes"),
    ("--batch=8", "expected KEY=VALUE without dashes and blanks, found some; write batch=VALUE."),
    ("data..x=1", "found a name that is empty."),
    # the same kinds again, as other people slip
    ("BATCH=8", "unknown key 'BATCH' (did you mean 'batch'?); write batch."),
    ("wd=0.1", "write trainer.weight_decay."),
    ("num_workers=4", "write trainer.dataloader_num_workers."),
    ("data.truncation=true", "write data.over_length."),
    ("data.name=main", "write data.subset."),
    ("resume=true", "the same command continues the run in its 'out'."),
    ("gpu=0", "it is an option of the command: write --device NAME (cpu, cuda, cuda:N, mps)."),
    ("dry_run=true", "write --dry-run."),
    ("per_device_batch_size=4", "write micro_batch."),
    ("lora.target_modules=all", "write lora.target_modules=all-linear."),
    ("trainer.device=cpu", "--device NAME (cpu, cuda, cuda:N, mps) behind the command chooses the device."),
    ("model=llada", "(did you mean 'GSAI-ML/LLaDA-8B-Base'?)."),
    ("data.train=train.jsonl,qa.jsonl", "several files are named by the folder that holds them."),
    ("data.train=*.jsonl", "several files are named by the folder that holds them."),
    ("data.train=[train.jsonl,qa.jsonl]", "several files are named by the folder that holds them."),
    ("data.train=semicolons.csv", "its columns are separated by ';'; separate them by commas."),
    ("data.train=documents.jsonl", 'write "data.columns={prompt: question, completion: text}" if it is the answer, or'),
    ("data.train=foreign.jsonl", '"data.columns={prompt: frage, completion: antwort}"'),
    ("out=notes.txt", "notes.txt: expected a folder, found a file."),
    ("out=notes.txt/run", "notes.txt/run: expected a folder, found a file on the way to it, notes.txt."),
    ("lora", "override 'lora': expected key=value, found no '='; recipes are joined by +: write RECIPE+lora."),
    ("patience=3", "there is no early stopping"),
    ("config=x.yaml", "a recipe's file stands first: stabledllm train FILE.yaml."),
    ("data.shuffle=true", "rows are always dealt in a random order, that of order_seed."),
    ("trainer.lr=1", "unknown to TrainingArguments; write trainer.learning_rate."),
    ("trainer.warmup_ratio=0.1", "write trainer.warmup_steps, which is a share of the steps below 1."),
    ("trainer.no_cuda=true", "write trainer.use_cpu=true."),
    ("trainer.group_by_length=true", "write group_by_length."),
    ("trainer.evaluation_strategy=steps", "write eval_every."),
    ("trainer.early_stopping_patience=3", "there is no early stopping"),
    ("trainer.foo=1", "docs/settings.md says which are honoured."),
    ("trainer.optim=AdamW", "(did you mean 'adamw_torch'?), found 'AdamW'."),
    ("trainer.lr_scheduler_type=cosine_annealing", "(did you mean 'cosine'?)"),
    ("trainer.learning_rate=null", "found 'null'; leave the key out for its default."),
    ("trainer=adamw", "write trainer.NAME=VALUE, where NAME is one of learning_rate, "),
    ("data.max_len=8,192", "found '8,192'; write data.max_len=8192."),
    ("data.max_len=1k", "found '1k'; write data.max_len=1000."),
    ("batch='8'", "write batch=8."),
    ("data.validation_share=0,1", "write data.validation_share=0.1."),
    ("data.validation_share=10", "write data.validation_share=0.1 for 10 %."),
    ("data.validation_share=none", "write data.validation_share=0 to train on every row."),
    ("data.validation_share=null", "write data.validation_share=0 to train on every row."),
    ("data.validation_rows=0", "write data.validation_share=0 to train on every row."),
    ("data.train_rows=all", "write data.train_rows=null for no limit of its own."),
    (
        "data.train_rows=8",
        "expected at most as many rows per step as there are to train on, 8, found 32; write batch=8",
    ),
    ("data.over_length=truncate", "write data.over_length=drop or a larger data.max_len, as nothing is ever cut."),
    ("data.format=chatml", "write data.format=messages."),
    ("data.format=csv", "write nothing: a file's ending says that."),
    ("objective=elbo", "write objective.weighting=elbo."),
    ("objective.weighting=ELBO", "write objective.weighting=elbo."),
    ("objective.normalization=tokens", "write objective.normalization=token."),
    ("ppots.design=gird", "write ppots.design=grid."),
    ("decoding.order=conf", "write decoding.order=confidence."),
    ("decoding=greedy", "write decoding.NAME=VALUE, where NAME is one of length, steps, "),
    ("lora=16", "write lora.rank=16, or RECIPE+lora."),
    ("objective=llada2", "found 'llada2'; write objective.name=llada2."),
    ("objective=Fast_dLLM", "write objective.name=fast-dllm."),
    ("quantised=nf4", "write quantised=4bit."),
    ("dtype=int8", "write quantised=8bit."),
    ("family=llama2", "family: unknown 'llama2'; write arm."),
    ("family=LLaDA", "(did you mean 'llada'?)."),
    ("attention=flash", "found 'flash' (did you mean 'flash_attention_2'?)."),
    ("micro_batch=5", "expected a multiple of micro_batch = 5, found 32; write micro_batch=4, or batch=35."),
    ("init_seed=3", "write model=new:tiny, or leave it out."),
    ("lora.rank=8 model=new:tiny", "key 'lora': expected a trained model to adapt, found the new one 'new:tiny'."),
    ("allow_changed=[stepz]", "found 'stepz' (did you mean 'steps'?)."),
    ("callbacks=[SaveSamples]", "expected dotted names of classes, such as my_callbacks.SaveSamples"),
    ("callbacks=[my_callback.Save]", "found no module 'my_callback' (did you mean 'my_callbacks.py'?)."),
    ("p_of_t=fitted.json method=ppots+mirror", "fitted for 'ppots+mirror', found one for 'ppots'."),
    ("p_of_t=fitted.json method=ppots objective.eps=0.01", "fitted for objective.eps=0.01, found 0.001."),
    ("p_of_t=fitted.json method=ppots objective.weighting=unweighted", "objective.weighting=unweighted, found elbo."),
    ("p_of_t=fitted.json method=ppots block_size=8", "fitted for block_size=8, found one for None."),
    ("p_of_t=p.json method=ppots", "p.json: expected JSON, found something broken"),
    ("p_of_t=p.jsn method=ppots", "found nothing at 'p.jsn' (did you mean 'p.json'?)."),
    ("clip=vit", "CLIP model 'vit': expected a local folder or a hub's OWNER/NAME"),
    ("epochs=3", "expected steps=null beside it, since steps are set and decide"),
    ("method=PPOTS", "unknown part 'PPOTS' (did you mean 'ppots'?)."),
    ("method=null", "method 'null': expected parts joined by '+', found none; write standard."),
    ("method=mirror+mirror", "found one twice; write mirror."),
    ("method=[ppots,mirror]", "write ppots+mirror."),
    ("method=multisample1", "multisample: expected 2 to 64 views, found 1."),
    (
        "method=clipped method_options.clip_low=0.9",
        "expected an interval 0 <= low < high <= 1, found low=0.9, high=0.8.",
    ),
    ("block_size=8 decoding.block=4", "leave it out, or write decoding.block=8."),
    ("model=LLaDA-8B-Instruct", "(did you mean 'GSAI-ML/LLaDA-8B-Instruct'?)."),
    ("model=GSAI-ML/LLaDA-8B-Instruct/", "write GSAI-ML/LLaDA-8B-Instruct."),
    ("model=mymodels/lama", "expected a folder, found nothing there (did you mean 'mymodels/llama'?)."),
    ("model=mymodels", "found llama in it; write mymodels/llama."),
    ("model=mymodels/llama/config.json", "found a file; write mymodels/llama."),
    # data
    ("data.train=train", "found the unknown kind 'train'; write train.jsonl."),
    ("data.train=json:train.jsonl", "write train.jsonl, as the file's ending tells what it is."),
    ("data.train=hf:owner/name", "write hub:owner/name."),
    ("data.train=https://huggingface.co/datasets/owner/name", "write hub:owner/name."),
    ("data.train=owner/name", "found nothing at 'owner/name'; a data set of the hub is hub:owner/name."),
    ("data.train=hub:", "expected hub:OWNER/NAME, found no name."),
    (
        "data.test=none",
        "kind 'none'; data.validation_share=0 leaves validation rows out,",
    ),
    ("data.train=synthetic:hrd", "unknown difficulty 'hrd' (did you mean 'hard'?)"),
    ("data.train=scenes:hrd", "unknown level 'hrd' (did you mean 'hard'?)."),
    ("data.train=gsm8k:train.jsonl", "train.jsonl:1: expected text under 'question'"),
    ("data.train=qa.csv", '"data.columns={prompt: Q, completion: A}"'),
    ("data.train=qa.jsonl", '"data.columns={question: Question, answer: Solution}" reads.'),
    ("data.train=preferences.jsonl", "on the good answers alone: data.format=prompt-completion"),
    ('data.train=qa.csv data.columns={"prompt":q}', "the key 'q' that data.columns names, found keys ['A', 'Q']"),
    ('data.columns={"prmpt":Q} data.train=qa.csv', "(did you mean 'prompt'?)."),
    ("data.columns={prompt:Q} data.train=qa.csv", '"data.columns={prompt: Q}", with a blank behind the colon.'),
    ("data.columns=prompt:Q data.train=qa.csv", 'write "data.columns={prompt: Q}".'),
    ("data.train=notes.txt", "plain text to pre-train on is text:PATH."),
    ("data.train=empty.jsonl", "expected at least one row, found an empty file."),
    (
        "trainer.eval_on_start=true data.validation_share=0 data.train=train.jsonl batch=1",
        "expected validation rows, found",
    ),
    (
        "trainer.lr_scheduler_type=reduce_lr_on_plateau data.validation_share=0 data.train=train.jsonl batch=1",
        "write another schedule, or give data.validation.",
    ),
]
"""Overrides of ``sft-synthetic``, separated by blanks, and the end of the one sentence that they give."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with files of data, callbacks and a model."""
    for name, row in {
        "train": {"prompt": "1+1=?", "response": "2"},
        "qa": {"Question": "1+1=?", "Solution": "2"},
        "documents": {"question": "1+1=?", "text": "2"},
        "foreign": {"frage": "1+1=?", "antwort": "2"},
        "preferences": {"prompt": "1+1=?", "chosen": "2", "rejected": "3"},
    }.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "qa.csv").write_text("Q,A\n1+1=?,2\n")
    (tmp_path / "semicolons.csv").write_text("prompt;completion\n1+1=?;2\n")
    (tmp_path / "notes.txt").write_text("1+1=2")
    for name in ("empty.jsonl", "my_callbacks.py", "p.json"):
        (tmp_path / name).touch()
    objective = {"weighting": "elbo", "normalization": "row", "eps": 1e-3, "power": 0.0}
    fitted = {"schema": "stabledllm/p_of_t/1", "method": "ppots", "config": {}, "objective": objective}
    (tmp_path / "fitted.json").write_text(json.dumps(fitted))
    (tmp_path / "mymodels" / "llama").mkdir(parents=True)
    (tmp_path / "mymodels" / "llama" / "config.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as the command line has it: no name may be one of the hub's
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_density_of_the_same_method_is_taken(here):
    """Parts that leave the best p as it is make no other method."""
    settings = load_checked("sft-synthetic", ["method=ppots+ema", "p_of_t=fitted.json"])
    assert settings.p_of_t == "fitted.json"


def sentences(recipe: str, *overrides: str) -> list[str]:
    with pytest.raises(Mistakes) as told:
        load_checked(recipe, overrides)
    return told.value.sentences


@pytest.mark.parametrize(("overrides", "words"), TOLD, ids=[overrides for overrides, _ in TOLD])
def test_a_mistake_is_told_with_what_to_write(here, overrides, words):
    (told,) = set(sentences("sft-synthetic", *overrides.split()))
    assert words in told
    assert told.endswith(".")


RECIPES = [
    ("sft", "key 'model': expected a value, found none; write model=tiny (shipped), model=FOLDER or model=OWNER/NAME"),
    ("sft", "recipe 'sft': expected data.train, the rows to train on, found none; write data.train=PATH"),
    ("model: tiny\n", "expected data.train, the rows to train on, found none; write data.train=PATH (your own file)"),
    ("parts/lora", "found a part of others; write RECIPE+lora."),
    ("lora", "found a part of others; write RECIPE+lora."),
    ("sft-synthetic+lra", "recipe 'lra': expected a file or a shipped recipe, found neither (did you mean 'lora'?)."),
    ("sft-synthetic+", "expected names joined by '+', found an empty one; write sft-synthetic."),
    ("SFT", "(did you mean 'sft'?)."),
    ("mien.yaml", "(did you mean 'mine.yaml'?)."),
    ("mine", "(did you mean 'mine.yaml'?)."),
    ("train.jsonl", "expected a recipe, found a file of data; write sft model=MODEL data.train=train.jsonl."),
    ("nothing", "found neither; stabledllm ls lists those that ship."),
    ("batch: 2\nbatch: 3\n", "line 2: expected each key once, found 'batch' again (line 1)."),
    ("trainer: {optim: sgd, optim: sgd}\n", "line 1: expected each key once, found 'optim' again (line 1)."),
    ("extends: sft-synthetik\n", "extends: recipe 'sft-synthetik': expected a file or a shipped recipe"),
    ("base: sft-synthetic\nmethods: [standard]\n", "write base: {extends: sft-synthetic}."),
    (
        "base: {extends: sft-synthetic}\nmethods: []\n",
        "key 'methods': expected a list of at least 1, found an empty list.",
    ),
    ("base: {extends: sft-synthetic}\nmethods: standard\n", "write methods=[standard]."),
    (
        "base: {extends: sft-synthetic}\nmethod: mirror\n",
        "keys method: expected a list of them in an experiment; write methods.",
    ),
    ("base: {extends: sft-synthetic}\nmethods: [standard]\nequal: step\n", "write equal=steps."),
    (
        "base: {extends: sft, model: tiny}\nmethods: [standard]\n",
        "expected data.train, the rows to train on, found none",
    ),
    (
        "base: {extends: sft, model: tiny, batch: 1, data: {train: train.jsonl, validation_share: 0}}\n"
        "methods: [mirror]\n",
        "expected rows to compare methods on, found none: data.validation_share=0 holds none out",
    ),
]
"""Recipes, or the text of ``mine.yaml``, with the end of one of the sentences that they give."""


@pytest.mark.parametrize(
    ("recipe", "words"), RECIPES, ids=[f"{i}-{one[:20].strip()}" for i, (one, _) in enumerate(RECIPES)]
)
def test_a_mistake_of_a_recipe_is_told_with_what_to_write(here, recipe, words):
    (here / "mine.yaml").write_text(recipe)
    with pytest.raises(UserError) as told:
        load_checked("mine.yaml" if recipe.endswith("\n") else recipe)
    assert words in str(told.value)


def test_what_is_left_out_of_the_list(here):
    """Rows behind the first of a large file, models on the hub and what acts are nobody's mistake here."""
    (here / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 40_000 + "{broken\n")
    load_checked("sft", ["model=owner/name", "data.train=train.jsonl", "eval_every=null", "data.validation_share=0"])
    load_checked("sft+lora", ["model=tiny", "data.train=train.jsonl", "callbacks=[my_callbacks.Any]"])


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
    assert load_checked("sft-synthetic", ["data.train=train.jsonl", "batch=1", "method=strats+mirror"]).batch == 1
    assert load_checked("sft-synthetic", ["model=some/where", "data.train=hub:some/where"]).model == "some/where"
    assert len(load_checked("quickstart").methods) > 1
    with pytest.raises(UserError, match="did you mean 'sft-synthetic'"):
        load_checked("sft-syntetic")


def test_several_are_a_list_and_the_code_is_2(here):
    before = set(here.iterdir())
    result = in_process("train", "sft-synthetic", "metod=ppots", "bach=8", cwd=here)
    lines = result.stderr.splitlines()
    assert result.returncode == 2
    assert lines[0] == "stabledllm: 2 mistakes; nothing was loaded or written:"
    assert [line[:5] for line in lines[1:]] == ["  1. ", "  2. "]
    assert set(here.iterdir()) == before


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


WRONG = [
    ["validate", "sft-synthetic", "method=ppotz", "model=tny", "data.train=jsonl:x", "trainer.run_name=x"],
    ["train", "sft-synthetic+lora", "lora.target_modules=[q]", "decoding.length=7", "decoding.block=4"],
    ["experiment", "quickstart", "base.bach=8", "--jobs", "2"],
    ["fit", "metod=x", "--model", "tny", "--data", "jsonl:x", "--method", "mirror"],
    ["decompose", "row=3", "--methods", "ppotz,adaptive", "--data", "x.jsonl"],
    ["recommend", "--by", "loose", "forward=3"],
    ["eval", "--model", "tny", "--set", "ordr=x", "--beside", "nothere"],
    ["generate", "x", "--model", "tny", "--length", "7", "--block", "4"],
    ["plan", "gsm8k/llada-8b", "--memory", "much", "--sharding", "zero4"],
    ["merge", "tny", "--out", "x", "--dtype", "half"],
    ["rescore", "x.jsonl", "--task", "gsm9k", "--out", "."],
]
"""Command lines with mistakes, one of each command that takes settings."""
CHILD = """
import contextlib, io, json, sys
from stabledllm.cli.main import main

told = []
for words in json.loads(sys.argv[1]):
    error, code = io.StringIO(), 0
    sys.argv = ["stabledllm", *words]
    with contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    heavy = {"torch", "transformers", "scipy", "matplotlib", "peft"} & set(sys.modules)
    told.append((code, error.getvalue(), sorted(heavy)))
print(json.dumps(told))
"""
"""Calls the command line again and again, and says after each call what is loaded by then."""


@pytest.fixture(scope="module")
def after_each(tmp_path_factory) -> list[tuple[int, str, list[str]]]:
    """Exit code, standard error and what heavy is loaded, of each of the wrong command lines, in one process."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(WRONG)],
        cwd=tmp_path_factory.mktemp("wrong"), env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.processes
@pytest.mark.parametrize("place", range(len(WRONG)), ids=lambda place: WRONG[place][0])
def test_torch_is_not_loaded_for_it(after_each, place):
    """Of those that load it the first is to blame: later ones find it there."""
    code, error, heavy = after_each[place]
    assert not heavy
    assert code == 2
    assert error.startswith("stabledllm: "), error[-2000:]


def test_a_finished_run_is_said_though_its_model_is_gone_and_a_new_one_is_refused(tmp_path):
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "run.json").write_text("{}")
    given = [f"model={tmp_path / 'gone'}", f"out={tmp_path / 'done'}"]
    assert load_checked("sft-synthetic", given, repeated=True).model == str(tmp_path / "gone")
    for there, repeated in ((given, False), ([given[0], f"out={tmp_path / 'new'}"], True)):
        with pytest.raises(UserError, match="gone"):
            load_checked("sft-synthetic", there, repeated=repeated)
