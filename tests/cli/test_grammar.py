"""Every setting is read as KEY=VALUE and as --KEY VALUE, by every command that has it, from one table."""

from __future__ import annotations

import json

import pytest
import typer

from stabledllm.cli.arguments import read_arguments
from stabledllm.cli.dashes import without_dashes
from stabledllm.cli.grammar import GRAMMARS, OF_OTHERS
from stabledllm.cli.help import sections
from stabledllm.cli.main import app
from stabledllm.cli.options import full_names
from stabledllm.config.checking import read_settings
from stabledllm.config.recipe import apply_overrides
from stabledllm.errors import UserError
from tests.cli.runner import assert_refused
from tests.cli.runner import in_process as call

COMMANDS = typer.main.get_command(app).commands
SAMPLES = (
    "[espo]",
    "12",
    "true",
    "false",
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "0.5",
    "0.25",
    "word",
    "[a]",
    "[7]",
    "[0.1]",
    "{a: b}",
    "[ppots]",
    "[duel]",
)
GIVEN = {"eval": ["--set"], "generate": ["--set"]}
"""Commands with options of their own that take ``KEY=VALUE``."""


def settings_of(command: str, words: list[str]):
    """The settings that words stand for, by either spelling; those of an experiment where the keys are its own."""
    grammar = GRAMMARS[command]
    read, notes = without_dashes(words, grammar, GIVEN.get(command, []))
    typed = read_arguments(command, read)
    tree = apply_overrides(grammar.tree(), typed.overrides)
    return read_settings(tree, grammar.kind, command), notes


def value_at(settings, key: str):
    for part in key.split("."):
        settings = settings[part] if isinstance(settings, dict) else getattr(settings, part)
    return settings


@pytest.mark.parametrize("command", [name for name in GRAMMARS if name not in ("validate", "plan")])
def test_every_key_acts_by_both_spellings(command):
    grammar = GRAMMARS[command]
    base = settings_of(command, [])[0].settings.model_dump()
    for key in grammar.keys.values():
        if key.is_group:
            continue
        for value in (*key.choices, *SAMPLES):
            typed, _ = settings_of(command, [f"{key.name}={value}"])
            if not typed.sentences and typed.settings.model_dump() != base:
                break
        else:
            pytest.fail(f"{command}: no sample of {key.name} has an effect")
        for words in (
            [f"--{key.name}", value],
            [f"--{key.name}={value}"],
            [f"--{key.name.replace('_', '-')}", value],
        ):
            dashed, notes = settings_of(command, words)
            assert dashed.sentences == [], words
            assert dashed.settings.model_dump() == typed.settings.model_dump(), words
            assert not notes


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_an_objective_alone_is_its_kind(kind):
    for command in ("decompose", "recommend", "train", "fit"):
        read, _ = settings_of(command, ["--objective", kind])
        assert read.sentences == []
        assert read.settings.objective.kind == kind
    typed, _ = settings_of("decompose", ["objective={kind: grpo, eps: 0.01}"])
    assert (typed.settings.objective.kind, typed.settings.objective.eps) == ("grpo", 0.01)


def test_switches_need_no_value():
    for words, value in (
        (["--gradient"], True),
        (["--gradient", "rows=5"], True),
        (["--gradient", "false"], False),
        (["--no-gradient"], False),
        (["gradient=true"], True),
    ):
        assert settings_of("recommend", words)[0].settings.gradient is value, words
    assert settings_of("recommend", ["--gradient", "rows=5"])[0].settings.rows == 5


def test_lists_are_written_with_commas():
    read = settings_of("decompose", ["--methods", "standard, lowdisc+fixedcount"])[0]
    assert read.settings.methods == ["standard", "lowdisc+fixedcount"]
    assert settings_of("experiment", ["--seeds", "1,2"])[0].settings.seeds == [1, 2]
    odd = settings_of("decompose", ["--grad.parameters", "head.*,*it's"])[0]
    assert odd.settings.grad.parameters == ["head.*", "*it's"]


@pytest.mark.parametrize(
    ("command", "words", "key", "value"),
    [
        ("decompose", ["--data", "gsm8k:x"], "data.train", "gsm8k:x"),
        ("decompose", ["data=gsm8k:x"], "data.train", "gsm8k:x"),
        ("train", ["--data", "{train: x}"], "data.train", "x"),
        ("train", ["--data", "mine.jsonl"], "data.train", "mine.jsonl"),
        ("train", ["--max-len", "40"], "data.max_len", 40),
        ("train", ["--data.columns.prompt", "question"], "data.columns.prompt", "question"),
        ("train", ["--trainer.bf16"], "trainer.bf16", True),
        ("eval", ["--batch", "3"], "generate_batch", 3),
        ("eval", ["--length", "40"], "decoding.length", 40),
        ("eval", ["steps=32"], "decoding.steps", 32),
        ("eval", ["--pad-response-to", "40"], "data.pad_response_to", 40),
        ("generate", ["--seed", "4"], "decoding.seed", 4),
    ],
)
def test_short_names(command, words, key, value):
    read, _ = settings_of(command, words)
    assert read.sentences == []
    assert value_at(read.settings, key) == value


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--lr", "1e-3"], "trainer.learning_rate", 1e-3),
        (["--learning_rate=1e-3"], "trainer.learning_rate", 1e-3),
        (["--weight-decay", "0.1"], "trainer.weight_decay", 0.1),
        (["--max_steps", "7"], "steps", 7),
        (["--output_dir", "x"], "out", "x"),
        (["--lora_rank", "4"], "lora.rank", 4),
        (["--bf16"], "trainer.bf16", True),
    ],
)
def test_names_of_other_programs_are_said(words, key, value):
    read, notes = settings_of("train", words)
    assert value_at(read.settings, key) == value
    assert notes == [f"note: --{words[0].lstrip('-').partition('=')[0].replace('-', '_')} is read as {key}"]


def test_every_name_of_another_program_has_its_key():
    missing = [name for name in OF_OTHERS if GRAMMARS["train"].of_others(name) is None]
    assert not missing


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "sft-synthetic", "--btach", "3"], "unknown option '--btach' (did you mean '--batch'?)."),
        (["train", "sft-synthetic", "--devise", "cpu"], "(did you mean '--device'?)"),
        (["train", "sft-synthetic", "--per_device_train_batch_size", "3"], "write micro_batch"),
        (["train", "sft-synthetic", "--steps"], "option '--steps': expected a value, found none; write --steps N."),
        (["train", "sft-synthetic", "--steps", "--quiet"], "option '--steps': expected a value"),
        (["train", "sft-synthetic", "--steps", "5", "steps=6"], "expected each key once, found it twice (5 and 6)"),
        (["train", "sft-synthetic", "--config", "quickstart"], "expected one recipe, in the first place or after"),
        (["train"], "expected a recipe in the first place, found none"),
        (["experiment", "--base.steps", "3"], "expected a recipe in the first place, found none"),
        (["experiment", "quickstart", "--model", "tiny"], "write base.model"),
        (["decompose", "--methds", "standard"], "(did you mean '--methods'?)"),
        (["decompose", "--device", "gpu"], "expected auto, cpu, cuda, cuda:N or mps, found 'gpu'"),
        (["decompose", "--device"], "option '--device': expected a value, found none"),
        (["decompose", "--quiet=yes"], "option '--quiet': expected no value, found 'yes'"),
        (["eval", "--job", "3"], "unknown option '--job'"),
        (["train", "sft-synthetic", "--quick"], "for a short run write steps=20 out=FOLDER"),
        (["experiment", "quickstart", "--job", "3"], "(did you mean '--jobs'?)"),
        (["plan", "sft-synthetic", "--devices", "x"], "plan: invalid value for '--devices'"),
        (["train", "sft", "-steps", "5"], "unknown option '-steps'; write --steps."),
        (["train", "sft", "-lr=5"], "unknown option '-lr'; write --lr."),
        (["train", "sft", "steps", "=", "5"], "found 'steps', '=' and '5' apart; write steps=5."),
        (["train", "sft", "model=", "tiny"], "found 'model', '=' and 'tiny' apart; write model=tiny."),
        (["train", "sft", "model=tiny", "--lora"], "write --lora.rank VALUE."),
        (["train", "sft", "--trainer"], "write --trainer.NAME VALUE."),
        (["power", "--difference", "x"], "invalid value for '--difference': expected a number;"),
        (["plan", "sft", "--devices", "0"], "'--devices': expected a number greater than or equal to 1;"),
        (["power", "--difference", "0", "--sd", "-1"], "2 mistakes"),
        (["power", "--difference", "1", "--from", "x"], "found nothing at 'x'; 'stabledllm experiment' writes it."),
        (["power", "--difference", "1", "--from", "."], "found none in '.'; 'stabledllm experiment' writes it."),
        (["power", "--differnce", "3"], "(did you mean '--difference'?)"),
        (["power"], "power: missing option '--difference'"),
        (["trian", "x"], "unknown command 'trian' (did you mean 'train'?)"),
        (["--hlep"], "no such option: --hlep"),
        (["ls", "--steps", "3"], "ls: no such option: --steps"),
        (["recommend", "--from", "x", "--model", "y"], "expected no settings beside --from, found 'model=y'"),
        (["generate", "hi", "modl=tiny"], "unknown key 'modl' (did you mean 'model'?)"),
        (["generate", "hi", "--image_decoding.steps", "3"], "expected --image beside it"),
        (["generate", "hi", "--image", "--length", "3"], "key 'decoding.length': expected none beside --image"),
        (["generate", "hi", "--data.image.side", "8"], "key 'data.image.side': expected --image beside it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(tmp_path, words, sentence):
    result = call(*words, cwd=tmp_path)
    assert_refused(result, sentence)
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_all_unknown_options_are_told_at_once():
    with pytest.raises(UserError, match=r"2 mistakes(.|\n)*--btach(.|\n)*--mdel"):
        without_dashes(["--btach", "3", "--mdel=x"], GRAMMARS["train"], [])


def test_after_two_dashes_nothing_is_an_option():
    assert without_dashes(["--steps", "3", "--", "--steps", "4"], GRAMMARS["train"], [])[0] == [
        "steps=3", "--", "--steps", "4",
    ]  # fmt: skip


def test_of_a_repeated_option_the_last_counts():
    words = ["--batch", "3", "--rows", "2", "--batch=1", "--steps", "8", "--decoding.steps", "16"]
    assert without_dashes(words, GRAMMARS["eval"], [])[0] == ["rows=2", "generate_batch=1", "decoding.steps=16"]


def test_set_names_the_decoding_or_another_group():
    assert full_names(["seed=5", "data.few_shot=2", "seed=6"]) == ["decoding.seed=6", "data.few_shot=2"]


def test_the_recipe_may_stand_anywhere(tmp_path):
    (tmp_path / "a=b.yaml").write_text("x: 1")
    assert read_arguments("train", ["steps=3", "sft"]).recipe == "sft"
    assert read_arguments("train", ["steps=3"], "sft").recipe == "sft"
    assert read_arguments("train", [str(tmp_path / "a=b.yaml")]).recipe == str(tmp_path / "a=b.yaml")
    assert read_arguments("train", ["sft", "steps"]).overrides == ["steps"], "told as a setting without a value"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_h_is_help(tmp_path, name):
    asked = call(name, "-h", cwd=tmp_path)
    assert asked.returncode == 0
    assert asked.stdout == call(name, "--help", cwd=tmp_path).stdout
    assert "--quiet" in asked.stdout


@pytest.mark.parametrize("name", sorted(GRAMMARS))
def test_help_has_every_key_once(name):
    grammar = GRAMMARS[name]
    shown = [names for _, rows in sections(grammar) for names, _ in rows]
    for key in grammar.keys.values():
        written = sum(f"--{key.name} " in f"{names} " for names in shown)
        assert written == (not key.is_group and "trainer." not in key.name), key.name


def test_help_gives_defaults_of_the_command(tmp_path):
    text = " ".join(call("recommend", "-h", cwd=tmp_path).stdout.split())
    assert "[runs/recommend]" in text
    assert "--gradient true|false Measure the gradient's noise as well [true]" in text
    assert "--data, --data.train TEXT" in text


def test_recipes_are_borrowed(tmp_path):
    result = call("decompose", "quickstart", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "of recipe 'quickstart', which says how to train, taken here: model, data, methods" in result.stdout
    assert "4 methods" in result.stdout
    (tmp_path / "own.yaml").write_text("forwards: 4\nmethods: [standard, mirror]\nout: elsewhere\n")
    own = call("decompose", "--config", "own.yaml", "--dry-run", cwd=tmp_path)
    assert "taken here" not in own.stdout
    assert "2 methods" in own.stdout
    assert "elsewhere (new)" in own.stdout


def test_own_rows_without_a_recipe(tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}+1=?", "response": str(i + 1)}) + "\n" for i in range(40))
    )
    result = call("train", "--model", "tiny", "--data", "mine.jsonl", "--steps", "3", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "without a recipe, 'sft' is taken" in result.stdout
    assert "3 steps of 16 rows" in result.stdout
