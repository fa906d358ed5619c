"""Mistakes on every command line: each is told in a sentence that says what to write, and before torch is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stabledllm.cli.dashes import OF_COMMANDS
from stabledllm.cli.main import app
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.experiment.other_work import refuse_other_experiment, refuse_other_run
from stabledllm.runtime.files import write_json
from tests.cli.runner import ROOT, in_process

ROWS = ['{"prompt": "1+1=?", "completion": "2"}', '{"prompt": "1+2=?", "completion": "3"}']
BEGUN = {"method": "mirror", "batch": 16, "steps": None, "epochs": 3.0, "seed": 1, "trainer": {"learning_rate": 1e-3}}
"""The identity of a run that some folder holds already."""
FILES = {
    "mine.jsonl": "\n".join(ROWS * 20),
    "bad.jsonl": "\n".join([*ROWS, '{"prompt": "1+3=?"}']),
    "broken.jsonl": ROWS[0] + "\n{broken\n",
    "asks.jsonl": '{"prompt": "a"}\n{"foo": "b"}\n',
    "prompts.txt": "2+3=?\n",
    "empty.txt": "",
    "binary.txt": b"ok\n\xff\xfe\n",
    "qa.csv": "Q,A\n1+1=?,2\n",
    "twice.yaml": "extends: sft\nmodel: tiny\nmodel: tiny\n",
    "broken.yaml": "model: [tiny\n",
    "no-data.yaml": "model: tiny\n",
    "exp.yaml": "base: {extends: sft, model: tiny, data: {train: mine.jsonl}}\nseeds: [1]\nmethods: [mirror, standard]",
    "done/file": "",
    "few.jsonl": "\n".join(ROWS * 4),
    "list.yaml": "base: [sft]\nmethods: [mirror]\n",
    "word.yaml": "base: {extends: sft, model: tiny, data: {train: mine.jsonl}}\nmethods: [mirror]\nseeds: [1, x]\n",
    "begun/run.json": json.dumps({"schema": "stabledllm/run/1", "identity": BEGUN}),
    "windowed/run.json": json.dumps({"schema": "stabledllm/run/1", "identity": {"objective": {"weighting": "elbo"}}}),
    "killed/checkpoint-10/stabledllm.json": json.dumps({"schema": "stabledllm/checkpoint/1", **BEGUN}),
    "killed/checkpoint-5/stabledllm.json": json.dumps({"schema": "stabledllm/checkpoint/1", **BEGUN}),
    "begun-experiment/experiment.json": json.dumps(
        {"settings": {"base": {"batch": 4, "trainer": {"learning_rate": 1}}}}
    ),
    "adapter/adapter_config.json": '{"base_model_name_or_path": "tiny"}',
    "bert/config.json": '{"model_type": "bert"}',
    "sliding/config.json": '{"model_type": "qwen2", "use_sliding_window": true}',
    "exp/experiment.json": "{}",
    "dec/decomposition.json": '{"schema": "stabledllm/decomposition/1"}',
    "run/run.json": '{"schema": "stabledllm/run/1"}',
}
TRAIN = "train sft model=tiny data.train=mine.jsonl"
TOLD = {
    # convert, merge, rescore
    "convert missing --out x": "'tiny', 'tiny-mmada', a local folder or a hub's OWNER/NAME, found no such thing",
    "convert ./missing --out x": "expected a folder, found nothing there",
    "convert adapter --out x": "found an adapter; 'stabledllm merge adapter --out FOLDER' makes one of it",
    "convert bert --out x": "expected model_type llama, qwen2, qwen3, found 'bert'",
    "convert sliding --out x": "found a sliding window (use_sliding_window)",
    "convert tiny --out x": "expected model_type llama, qwen2, qwen3, found 'stabledllm_tiny'",
    "convert done --out x": "expected a folder with config.json or adapter_config.json, found file in it",
    "convert missing.gguf --out x": "expected a file, found nothing",
    "convert owner/name --out done": "found one that is there already; name another, or remove it",
    "convert owner/name --out mine.jsonl": "mine.jsonl: expected a new folder, found a file; name another folder",
    "convert owner/name --out x --dtype bf16": "write dtype=bfloat16",
    "convert owner/name --out x --mask-token new --mask-embedding kept": "expected --mask-embedding mean",
    "merge tiny --out x": "expected a folder with adapter_config.json, as a LoRA run's, found the model 'tiny'",
    "merge adapter --out done": "done: expected a new folder",
    "merge adapter --out x --base tny": "(did you mean 'tiny'?)",
    "merge adapter --out mine.jsonl": "mine.jsonl: expected a new folder, found a file; name another folder",
    "merge adapter --out adapter": "adapter: expected a new folder, found one that is there already; name another",
    "rescore mine.jsonl --task gym --out x": "(did you mean 'reasoning-gym'?)",
    "rescore mine.jsonl --task gym:leg_counting --out x": "(did you mean 'reasoning-gym'?)",
    "rescore mine.jsonl --task math --out x": "(did you mean 'gsm8k'?)",
    "rescore mine.jsonl --task gsm9k --out x": "(did you mean 'gsm8k'?)",
    "rescore mine.jsonl --task gsm8k --out mine.jsonl": "expected --out to be another file",
    "rescore qa.csv --task gsm8k --out x": "qa.csv:1: expected a JSON object",
    # blocks
    f"{TRAIN} block_t=row": "key 'block_t': expected block_size beside 'row', found none; write block_size=32 too",
    f"{TRAIN} block_start=clean": "write block_size=32 too, or leave out block_start",
    f"{TRAIN} block_size=32 block_t=row method=adaptive": "expected 'own' with method 'adaptive'",
    "fit data.train=mine.jsonl block_t=row": "write block_size=32 too, or leave out block_t",
    "validate exp.yaml base.block_t=row": "stabledllm: key 'block_t': expected block_size beside 'row'",
    # the mask token
    f"{TRAIN} mask_token_id=5": "model 'tiny': expected no mask_token_id for the reference model, found '5'",
    "generate hi --model adapter --mask-token-id 5": "expected none for the adapter 'adapter', which has its base's",
    "validate gsm8k/sdar-4b+lora mask_token_id=151670": "expected none beside 'lora', since an adapter's files cannot",
    "validate gsm8k/sdar-4b mask_token_id=151936": "below the embedding's 151936 rows, found 151936",
    # a folder that holds other work, and more rows a step than there are
    f"{TRAIN} out=begun": "expected the run that is there with method='mirror', found method='lowdisc",
    f"{TRAIN} out=begun method=mirror seed=1 epochs=1": "with epochs=3.0, found epochs=1.0",
    f"{TRAIN} out=begun method=mirror seed=1 epochs=3 trainer.learning_rate=2e-3": "with trainer.learning_rate=0.001",
    f"{TRAIN} out=begun method=mirror seed=1 trainer.learning_rate=1e-3 epochs=4": "or allow_changed=[epochs] to go on",
    f"{TRAIN} out=begun method=mirror seed=2 allow_changed=[trainer]": "with seed=1, found seed=2; take another 'out'",
    f"{TRAIN} out=windowed objective.window=[0.3,0.8]": "with objective.window=None, found objective.window=[0.3, 0.8]",
    f"{TRAIN} out=killed": "killed/checkpoint-10: expected to resume with method='mirror'",
    f"{TRAIN} out=exp": "exp: expected the folder of a run, or a new one, found an experiment's; take another 'out'",
    f"{TRAIN} out=begun batch=8 metod=x": "unknown key 'metod' (did you mean 'method'?)",
    "experiment exp.yaml out=begun-experiment": "base.method='standard' as in the experiment that is there, found",
    "experiment exp.yaml out=begun": "expected the folder of an experiment, or a new one, found a run's",
    f"{TRAIN} batch=64": "as many rows per step as there are to train on, 40, found 64; write batch=40 or less",
    "train sft model=tiny data.train=few.jsonl": "there are to train on, 8, found 16; write batch=8 or less",
    "experiment exp.yaml base.batch=64": "as there are to train on, 40, found 64",
    # generate
    "generate": "expected at least one prompt, --file FILE, or -",
    "generate hi --out mine.jsonl": "expected a new file, found one that is there already; name another, or remove it",
    "generate hi --out done": "expected a file to write, found a folder",
    "generate hi --model tny --out done": "2 mistakes",
    "generate --file prompts.txt --out prompts.txt": "expected a new file",
    "generate hi --image --out mine.jsonl": "mine.jsonl: expected a new folder",
    "generate --file asks.jsonl": "asks.jsonl:2: expected a prompt under messages",
    "generate --file broken.jsonl": "broken.jsonl:2: expected a JSON object, found broken JSON",
    "generate --file binary.txt": "binary.txt: expected UTF-8 text",
    "generate --file empty.txt": "expected at least one prompt, found none",
    "generate --file qa.csv": 'say "data.columns={prompt: YOUR_KEY}"',
    "generate --file promts.txt": "expected a file of prompts, found nothing (did you mean 'prompts.txt'?)",
    "generate -": "standard input: expected at least one prompt, found none",
    "generate prompts.txt": "found the name of a file; write --file prompts.txt",
    "generate adapter": "found the folder of a model; write --model adapter",
    "generate hi --model exp": "found the folder of an experiment",
    "generate hi --length 7 --block 3": "block 3 does not divide length 7",
    "generate hi --image --length 8": "which decodes by image_decoding",
    "generate lenght=8 hi": "(did you mean 'length'?)",
    "generate --prompt hi": "prompts stand by themselves: generate 'YOUR PROMPT'",
    "generate hi --template none": "turns are written by the tokenizer's chat template",
    "generate hi --remasking low_confidence": "write decoding.order",
    "generate hi --device gpu": "expected auto, cpu, cuda, cuda:N or mps, found 'gpu'",
    # eval
    "eval --model tiny --data bad.jsonl": "bad.jsonl:3: expected text beside 'prompt'",
    "eval --model tiny --data mine.jsonl --quick": "to evaluate fewer rows write rows=20",
    "eval --model tiny --data mine.jsonl --metrics accuracy": "all that the rows allow is measured: the NLL, and",
    "eval --model tiny --data mine.jsonl --task gsm8k": "a task is named as the data; write data=gsm8k",
    "eval --model tiny --data mine.jsonl --samples 5": "write rows",
    "eval --model tiny --data mine.jsonl limit=5": "write rows",
    "eval --model tiny --data mine.jsonl --beside done": "expected a folder with config.json",
    "eval tiny": "a model is named by model=tiny",
    "eval run/run.json": "expected a recipe, found a record of 'stabledllm/run/1'",
    "eval mine.jsonl": "write sft model=MODEL data.train=mine.jsonl",
    # train, validate, plan
    "train sft model=tiny data.train=bad.jsonl": "bad.jsonl:3: expected text beside 'prompt'",
    "train sft model=tiny data.train=broken.jsonl": "broken.jsonl:2: expected a JSON object, found broken JSON",
    f"{TRAIN} data.validation=bad.jsonl": "bad.jsonl:3: expected text beside 'prompt'",
    f"{TRAIN} callbacks=[my.Own,my.Own]": "expected each class once, found 'my.Own' twice",
    f"{TRAIN} --jobs 2": "unknown option '--jobs'; it is an option of experiment",
    f"{TRAIN} method=[standard,mirror]": "found standard, which stands alone, beside others; write one of them",
    f"{TRAIN} method=standard+mirror": "to compare them",
    f"{TRAIN} method=[ppots,mirror]": "write ppots+mirror",
    f"{TRAIN} method=ppots-mirror": "unknown part 'ppots-mirror'; write ppots+mirror",
    f"{TRAIN} method=lora": "found an adapter; write RECIPE+lora",
    f"{TRAIN} --force": "what is in 'out' is never overwritten; write another out",
    f"{TRAIN} overwrite=true": "what is in 'out' is never overwritten; write another out",
    f"{TRAIN} --num_gpus 2": "accelerate launch uses several",
    f"{TRAIN} gpus=2": "CUDA_VISIBLE_DEVICES before the command chooses the devices",
    f"{TRAIN} quantization=4bit": "write quantised",
    f"{TRAIN} task=gsm8k": "a task is named as the data; write data=gsm8k",
    f"{TRAIN} data.template=llama": "turns are written by the tokenizer's chat template",
    f"{TRAIN} trainer.optim=galore_adamw": "which takes galore_torch; install it, or write adamw_torch",
    f"{TRAIN} trainer.lr_scheduler_type=cosine_with_min_lr": "expected min_lr or min_lr_rate",
    f"{TRAIN} trainer.learning_rate=1,000": "write trainer.learning_rate=1000",
    f"{TRAIN} trainer.learning_rate=0,001": "write trainer.learning_rate=0.001",
    f"{TRAIN} lora={{rank:8}}": "unknown key 'lora.rank:8'; write lora.rank=8",
    f"{TRAIN} method_options.views=3": "write method=multisample3",
    "train sft model=new: data.train=mine.jsonl": "model 'new:': expected new:tiny or new:FOLDER, found no name",
    "experiment exp.yaml seeds=1-3": "write seeds=[1, 2, 3]",
    f"{TRAIN} --quick": "for a short run write steps=20 out=FOLDER",
    f"{TRAIN} untuned=maybe": "key 'untuned': expected true or false, found 'maybe'",
    f"{TRAIN} data.validation_share=0 trainer.eval_on_start=true": "expected validation rows, found none",
    "train sft model=https://huggingface.co/GSAI-ML/LLaDA-8B-Base data.train=mine.jsonl": "write GSAI-ML/LLaDA-8B-Base",
    "train sft model=hf.co/GSAI-ML/LLaDA-8B-Base data.train=mine.jsonl": "write GSAI-ML/LLaDA-8B-Base",
    "train twice.yaml": "line 3: expected each key once, found 'model' again (line 2)",
    "train broken.yaml": "line 2: expected YAML, found a broken line",
    "train no-data.yaml": "write data.train=PATH (your own file)",
    "train exp.yaml": "use 'stabledllm experiment'",
    "train sft model = tiny": "write model=tiny",
    "trian sft": "(did you mean 'train'?)",
    "validate sft model=tiny data.train=mine.jsonl --dry-run": "it is an option of train, experiment, fit",
    "validate exp.yaml --load base.model=tny": "(did you mean 'tiny'?)",
    "plan sft model=tny": "(did you mean 'tiny'?)",
    "plan sft model=tiny --memory lots": "expected a memory such as 80GiB",
    # experiment
    "experiment exp.yaml jobs=2": "write --jobs",
    "experiment exp.yaml base.batch=3": "found 3; write base.batch=2 or base.batch=4",
    "experiment exp.yaml base.batch=1": "found 1; write base.batch=2",
    "experiment exp.yaml methods=[ppots] base.p_of_t=x": "since an experiment fits one for each of its methods",
    "experiment exp.yaml method=mirror": "keys method: expected a list of them in an experiment; write methods",
    "experiment exp.yaml seed=3 method=x": "keys seed, method: expected a list of them in an experiment; write",
    "experiment exp.yaml seed=3 model=tiny": "expected under 'base:', the run that an experiment varies; write",
    "experiment exp.yaml metrics=[accuracy]": "all that the rows allow is measured",
    "experiment list.yaml": "line 1: key 'base': expected keys and values, found a list",
    "experiment word.yaml": "line 3: key 'seeds': expected a whole number, found 'x' in the list.",
    "experiment exp.yaml seeds=[1,x]": "key 'seeds': expected a whole number, found 'x' in the list.",
    "experiment exp.yaml seeds=[1,[2]]": "key 'seeds.1': expected a whole number, found a list.",
    "experiment exp.yaml steps=5": "write base.steps",
    "experiment exp": "the folder of an experiment, which goes on with the recipe that it began with",
    "experiment sft": "2 mistakes",
    # fit, decompose, recommend
    "fit --model tiny --data bad.jsonl": "bad.jsonl:3: expected text beside 'prompt'",
    "fit --wide": "it is an option of decompose, recommend, replay and experiment",
    "fit --rows 5": "write ppots.rows",
    "decompose --model tiny --data bad.jsonl": "bad.jsonl:3: expected text beside 'prompt'",
    "decompose methods=standard,mirror": "write methods=[standard, mirror]",
    "recommend dec": "what was measured there is read by 'stabledllm recommend --from dec'",
    "recommend --from dec --wide": "--wide is for measuring now, which --from does not; leave one out",
    "recommend --from dec --dry-run": "--dry-run is for measuring now",
    "recommend --from mine.jsonl": "found a file of another kind, 'mine.jsonl'; 'stabledllm decompose' writes it",
    "recommend --model tiny --data mine.jsonl --batch 32": "write forwards",
    "decompose --model tiny --data mine.jsonl batch=32": "write forwards",
    "recommend --from exp": "found none in 'exp'; 'stabledllm decompose' writes it",
    # report, power, cp, ls, encode, quickstart
    "report dec/decomposition.json": "found a file; write its folder, dec",
    "report run": "found the run.json of one run, which holds its numbers; a report compares runs",
    "report missing": "expected a folder with stored results, found nothing",
    "report done": "expected decomposition.json, preference_noise.json, policy_noise.json, p_of_t*.json or",
    "power --difference inf --sd 1": "expected --difference as a number other than 0, such as 0.01, found inf",
    "power --difference 0.1 --sd 0": "expected --sd above 0, such as 0.02, found 0",
    "power --difference 0.1": "expected --sd NUMBER or --from FOLDER of an experiment, found neither",
    "cp nope": "stabledllm ls lists those that ship",
    "cp sft mine.jsonl": "expected a new file, found one that is there already",
    "encode mine.jsonl": "expected pictures (scenes, text-to-image-2m, images:PATH), found 'mine.jsonl'",
    "quickstart --steps 4": "no such option: --steps; 'stabledllm quickstart --help' lists its options",
    "quickstart --out mine.jsonl": "expected a folder, found a file",
}
"""What is typed, and a part of what is told."""
IN_ORDER = {
    "validate sft model=tiny data.train=mine.jsonl": (
        "sft: a training run of tiny with method lowdisc+fixedcount, in order"
    ),
    "validate exp.yaml": "exp.yaml: an experiment of 2 methods x 1 seed with tiny, in order",
}
"""What is typed without a mistake, and what is told."""
CHILD = """
import contextlib, functools, importlib.abc, io, json, sys
import typer.main
from stabledllm.cli.main import main

typer.main.get_command = functools.cache(typer.main.get_command)  # made once, not for every line

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            raise RuntimeError(f"{name} is imported")

sys.meta_path.insert(0, Refused())
sys.stdin = io.TextIOWrapper(io.BytesIO())
told = []
for words in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["stabledllm", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    told.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(told))
"""
"""Calls the command line again and again where torch and transformers cannot be imported."""


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A working directory with files of every kind that is mistaken for another."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture(scope="module")
def told(here) -> dict[str, tuple[int, str, str]]:
    """What each command line of both tables ends with: exit code, standard output and standard error."""
    lines = [*TOLD, *IN_ORDER]
    words = json.dumps([line.replace("model = tiny", "model\t=\ttiny").split(" ") for line in lines]).replace(
        "\\t", '","'
    )
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin", "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, words], cwd=here, env=env, capture_output=True, text=True, check=True, timeout=240
    )
    return dict(zip(lines, json.loads(child.stdout), strict=True))


@pytest.mark.processes
@pytest.mark.parametrize(("line", "words"), TOLD.items(), ids=list(TOLD))
def test_a_mistake_is_told_with_what_to_write_before_torch_is_loaded(told, line, words):
    code, _, error = told[line]
    assert code == 2, error
    assert error.startswith("stabledllm: "), error
    assert words in error


@pytest.mark.processes
def test_nothing_is_written(told, here):
    assert {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()} == FILES.keys()


@pytest.mark.processes
@pytest.mark.parametrize(("line", "sentence"), IN_ORDER.items(), ids=list(IN_ORDER))
def test_a_recipe_that_is_in_order_is_told_without_torch_as_well(told, line, sentence):
    code, out, _ = told[line]
    assert (code, out) == (0, f"{sentence}\n")


def test_what_changes_no_number_makes_no_other_work(tmp_path, monkeypatch):
    """Neither logging nor another name for the rows, the model or the method; a broken record is told later."""
    monkeypatch.chdir(tmp_path)
    run = TrainSettings(model="tiny", method="mirror+ppots", trainer={"report_to": "none"}, out="run", log_every=3)
    saved = json.loads(run.model_dump_json()) | {"method": "ppots+mirror", "model": "other", "log_every": 9}
    saved["trainer"], saved["data"]["train"] = {"report_to": "wandb"}, "elsewhere.jsonl"
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run/run.json", {"identity": saved})
    refuse_other_run(run)
    refuse_other_run(run.model_copy(update={"seed": 7, "allow_changed": ["seed"]}))
    with pytest.raises(UserError, match="with seed=42, found seed=7"):
        refuse_other_run(run.model_copy(update={"seed": 7}))
    (tmp_path / "run/run.json").write_text("{")
    refuse_other_run(run.model_copy(update={"seed": 7}))
    write_json(tmp_path / "experiment.json", {"settings": {"base": saved | {"trainer": {"report_to": "wandb"}}}})
    same = run.model_copy(update={"model": "other"})
    refuse_other_experiment(ExperimentSettings(base=same, methods=["standard"], out=str(tmp_path)))


def test_options_are_said_to_be_of_the_commands_that_have_them():
    import typer.main

    commands = typer.main.get_command(app).commands
    for name, having in OF_COMMANDS.items():
        found = [
            command
            for command, one in commands.items()
            if any(f"--{name.replace('_', '-')}" in parameter.opts for parameter in one.params)
        ]
        assert sorted(found) == sorted(having), name


def test_an_untuned_model_that_is_not_evaluated(here, tmp_path):
    run = ["train", "sft", "model=tiny", f"data.train={here / 'mine.jsonl'}", "steps=1", "untuned=false"]
    shown = in_process(*run, "out=run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "the untuned model is not evaluated (untuned=false)" in shown.stdout
    assert "validation NLL" in shown.stdout
    assert "\nuntuned model" not in shown.stdout
    again = in_process(*run[:-1], "out=run", cwd=tmp_path)
    assert "finished" in again.stdout, "whether it was evaluated makes no other run"
