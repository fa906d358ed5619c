"""Values arrive as they were typed, from a recipe and from the command line alike; anything else is one sentence."""

from __future__ import annotations

import pytest
import yaml

from stabledllm.config import load_recipe
from stabledllm.config.settings import DataSettings, TrainSettings
from stabledllm.config.twice import VIEWS
from stabledllm.errors import UserError
from stabledllm.noise.parts import PARTS
from tests.cli.runner import assert_refused, in_process

TEXT = "data.system_prompt"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.fixture
def recipe(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def value_of(settings: object, key: str) -> object:
    for part in key.split("."):
        settings = settings[part] if isinstance(settings, dict) else getattr(settings, part)
    return settings


def nested(key: str, value: str) -> str:
    """``a.b=value`` as YAML."""
    parts = key.split(".")
    return "".join(f"{'  ' * i}{part}:\n" for i, part in enumerate(parts))[:-1] + f" {value}\n"


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        (TEXT, "1.10", "1.10"),
        (TEXT, "no", "no"),
        (TEXT, "010", "010"),
        (TEXT, "2024-01-02", "2024-01-02"),
        (TEXT, "12:30:45", "12:30:45"),
        (TEXT, "true", "true"),
        (TEXT, "1e5", "1e5"),
        (TEXT, "null", None),
        (TEXT, "a#b = c", "a#b = c"),
        ("batch", "010", 10),
        ("batch", "+3", 3),
        ("batch", "1_000", 1000),
        ("batch", "1e3", 1000),
        ("batch", "1.0e+2", 100),
        ("batch", "0x10", 16),
        ("steps", "null", None),
        ("trainer.learning_rate", "1e-3", 1e-3),
        ("trainer.learning_rate", "5e-5", 5e-5),
        ("trainer.learning_rate", "1E-3", 1e-3),
        ("trainer.learning_rate", ".5", 0.5),
        ("trainer.learning_rate", "5.", 5.0),
        ("trainer.learning_rate", "+3", 3.0),
        ("trainer.learning_rate", "1_0.5", 10.5),
        ("trainer.lr_scheduler_kwargs.num_cycles", "1e-1", 0.1),
        ("trainer.bf16", "True", True),
        ("packing", "false", False),
        ("views_per_forward", "auto", "auto"),
        ("views_per_forward", "2", 2),
        ("data.delimiters", "[1.0, no, 'a # b', \"####\"]", ["1.0", "no", "a # b", "####"]),
        ("data.delimiters", "[]", []),
        ("lora", "{rank: 8, target_modules: [q_proj]}", None),
    ],
)
def test_a_recipe_and_an_override_give_the_same(recipe, key, written, expected):
    written_down = load_recipe(recipe(nested(key, written)))
    typed = load_recipe(recipe("seed: 1"), [f"{key}={written}"])
    if key == "lora":
        assert written_down.lora == typed.lora
        assert (typed.lora.rank, typed.lora.target_modules) == (8, ["q_proj"])
        return
    for settings in (written_down, typed):
        found = value_of(settings, key)
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize(
    "text",
    ["Solve. Write #### NUMBER", " # x", "a: b", "- a", "'quoted'", '"q', "[not a list", "{x}", "", "~", "*a", "&b",
     "%", "@", "`", "!!str x", "|", ">", "key=value", "é\u2028", "a\tb", "Null", "yes", "--- a", "1_000"],
)  # fmt: skip
def test_text_of_the_command_line_is_taken_as_it_is(text):
    assert load_recipe("sft-synthetic", [f"{TEXT}={text}"]).data.system_prompt == text


def test_hashes_within_a_list_of_the_command_line():
    found = load_recipe("sft-synthetic", ["data.delimiters=[####, a #b]"]).data.delimiters
    assert found == ["####", "a #b"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("batch", "true", ["a whole number", "found 'true'"]),
        ("batch", "1.5", ["a whole number", "found '1.5'"]),
        ("batch", "", ["a whole number"]),
        ("batch", "12:30", ["a whole number"]),
        ("batch", "-3", ["greater than or equal to 1", "found"]),
        ("batch", "null", ["a whole number"]),
        ("batch", "9" * 5000, ["characters"]),
        ("batch", "1" + "0" * 30, ["below 2^63"]),
        ("batch", "1e400", ["a whole number"]),
        ("seed", "-1", ["greater than or equal to 0"]),
        ("seed", "4294967296", ["less than 4294967296"]),
        ("seeds", "[1]", ["unknown key 'seeds'"]),
        ("packing", "yes", ["true or false", "found 'yes'"]),
        ("packing", "1", ["true or false"]),
        ("packing", "null", ["true or false"]),
        ("epochs", "inf", ["a finite number"]),
        ("epochs", ".inf", ["a finite number"]),
        ("epochs", "nan", ["a finite number"]),
        ("epochs", "1e999", ["a finite number"]),
        ("epochs", "true", ["a finite number"]),
        ("epochs", "0x1.8p3", ["a finite number"]),
        ("steps", "", ["a whole number"]),
        ("data.delimiters", "a,b", ["a list such as"]),
        ("data", "x", ["keys and values"]),
        ("data", "[a]", ["keys and values"]),
        ("data.max_len", "[1]", ["a whole number"]),
        ("out", "", ["at least 1 character"]),
        ("lora.target_modules", "[a, [b]]", ["lora.target_modules"]),
        ("decoding.steps", "1000000000000", ["less than or equal to"]),
        ("model", "a" * 3000, ["240 bytes"]),
        ("out", "x/" + "é" * 130, ["240 bytes"]),
        ("dtype", "float8", ["one of float32, bfloat16", "found 'float8'"]),
        ("objective.eps", "1", ["less than 1"]),
    ],
)
def test_what_is_refused_alike(recipe, key, value, words):
    said = []
    for make in (
        lambda: load_recipe(recipe("seed: 1"), [f"{key}={value}"]),
        lambda: load_recipe(recipe(nested(key, value))),
    ):
        try:
            make()
        except UserError as error:
            said.append(str(error))
    assert len(said) == (1 if value == "" and key == "steps" else 2), said
    for sentence in said:
        assert f"key '{key}'" in sentence or f"key '{key}." in sentence
        assert len(sentence) < 400
    for word in words:
        assert word in said[0]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (b"batch: 8\nmodel: \xff\n", 2, ["UTF-8", "0xff"]),
        ("", 1, ["found nothing"]),
        ("# only a comment\n", 1, ["found nothing"]),
        ("batch: 8\nbatch: 9\n", 2, ["each key once", "'batch'", "line 1"]),
        ("data:\n  train: x\n  train: y\n", 3, ["each key once"]),
        (LAUGHS, 5, ["aliases"]),
        ("a: *b\n", 1, ["anchor", "'*b'"]),
        ("a: &a [*a]\n", 1, ["anchor"]),
        ("batch: 8\nx: " + "[" * 3000, 2, ["levels"]),
        ("a:\n" + "".join(" " * i + "a:\n" for i in range(1, 500)), 41, ["levels"]),
        ("batch: 8\nmodel: !!python/object/apply:os.system [x]\n", 2, ["tag", "python/object"]),
        ("batch: !!int 8\n", 1, ["tag"]),
        ("batch: 8\n---\nbatch: 9\n", 2, ["one document"]),
        ("batch: 8\nmodel:\tx: y\n\tz\n", 2, ["expected YAML"]),
        ("batch: 8\n\tseed: 1\n", 2, ["expected YAML", "character '\\t'"]),
        ("batch: 8\nmodel: a\x07b\n", 2, ["control character"]),
        ("batch: 8\n? [a]\n: b\n", 2, ["name as a key"]),
        ("batch: 8\n1: x\n", 2, ["unknown key '1'"]),
        ("batch: 8\nseed: 1\nbtach: x\n", 3, ["unknown key 'btach'", "did you mean 'batch'"]),
        ("batch: 8\nseed: yes\n", 2, ["key 'seed'", "a whole number", "found 'yes'"]),
        ("batch: 8\nsteps: " + "9" * 5000 + "\n", 2, ["key 'steps'"]),
        ("batch: 8\ndata:\n  max_len: true\n", 3, ["key 'data.max_len'"]),
        ("base: {}\nmethods: [ema, a+b,\n  b+a]\n", 2, ["methods", "'a+b' and 'b+a', which are the same"]),
        ("base: {}\nmethods: [mirror, multisample2, multisample]\n", 2, ["methods", "multisample"]),
        ("base: {}\nmethods: [mirror]\nseeds: [1, 2, 1]\n", 3, ["key 'seeds'", "1 twice"]),
        ("base: {}\nmethods: []\n", 2, ["key 'methods'", "at least 1"]),
        ("trainer:\n  learning_rate: fast\n", 2, ["key 'trainer.learning_rate'", "a finite number", "'fast'"]),
        ("trainer:\n  max_steps: 3\n", 2, ["key 'trainer.max_steps'", "write steps"]),
        ("<<: {batch: 8}\n", 1, ["unknown key '<<'"]),
        ("- 1\n", 1, ["keys and values", "found list"]),
        ("x" * 1_000_001, None, ["at most 1,000,000"]),
    ],
)  # fmt: skip
def test_recipes_that_are_none(recipe, text, line, words):
    with pytest.raises(UserError) as found:
        load_recipe(recipe(text))
    said = str(found.value)
    assert "mine.yaml" in said
    if line is not None:
        assert f", line {line}:" in said, said
    for word in words:
        assert word in said
    assert len(said) < 600


def test_what_yaml_may_do(recipe):
    text = "\ufeff# a mark\nbatch: 8\nsteps:\ndata: {train: &t 'a: #b', test: *t}\nmodel: >-\n  two\n  lines\n"
    settings = load_recipe(recipe(text))
    assert (settings.batch, settings.steps, settings.model) == (8, None, "two lines")
    assert (settings.data.train, settings.data.test) == ("a: #b", "a: #b")


def test_a_line_in_a_parent_is_that_of_the_parent(recipe, tmp_path):
    (tmp_path / "parent.yaml").write_text("seed: 1\nbatch: many\n")
    with pytest.raises(UserError, match=r"recipe 'parent.yaml', line 2: key 'batch'"):
        load_recipe(recipe("extends: parent.yaml\nsteps: 3\n"))
    assert load_recipe(recipe("extends: parent.yaml\nsteps: 3\n"), ["batch=4"]).batch == 4


def test_parents_without_end_are_refused(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.yaml").write_text(f"extends: [{i + 1}.yaml, {i + 1}.yaml]\nbatch: {i + 1}\n")
    (tmp_path / "40.yaml").write_text("seed: 3\n")
    with pytest.raises(UserError, match="at most 30 recipes"):
        load_recipe(str(tmp_path / "0.yaml"))
    assert load_recipe(str(tmp_path / "12.yaml")).seed == 3, "28 levels that each name their parent twice"


@pytest.mark.parametrize(
    "override", ["=3", ".batch=3", "batch.=3", "data..seed=1", "batch", "", "batch.x=1", "a." * 3000 + "b=1"]
)
def test_malformed_overrides(override):
    with pytest.raises(UserError) as found:
        load_recipe("sft-synthetic", [override])
    assert len(str(found.value)) < 500


def test_settings_made_in_python_are_as_strict():
    for wrong in (
        {"batch": True},
        {"batch": 2.5},
        {"batch": "8"},
        {"epochs": float("nan")},
        {"packing": 1},
        {"seed": 2**70},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainSettings(**wrong)
    assert DataSettings(train_rows=3, delimiters=["x"]).train_rows == 3


def test_numbers_of_views_are_those_of_the_methods():
    assert {name: f"{name}{part.number}" for name, part in PARTS.items() if part.number} == VIEWS


def test_validate_and_train_agree_on_a_rate_as_text(recipe, tmp_path):
    path = recipe("extends: sft-synthetic\ntrainer:\n  learning_rate: 1e-3\nout: out\n")
    assert load_recipe(path).trainer["learning_rate"] == 1e-3
    assert in_process("validate", path, cwd=tmp_path).returncode == 0
    bad = recipe("extends: sft-synthetic\ntrainer:\n  learning_rate: fast\n")
    for command in ("validate", "train"):
        assert_refused(in_process(command, bad, cwd=tmp_path), "line 3: key 'trainer.learning_rate'", "'fast'")


def test_what_we_write_is_read_back():
    tree = {
        "batch": 8,
        "data": {"system_prompt": "no #1: yes", "delimiters": ["1.0"]},
        "trainer": {"weight_decay": 1e-5},
    }
    from stabledllm.config.checking import check
    from stabledllm.config.written import read_written

    settings = check(read_written(yaml.safe_dump(tree), "dumped"), TrainSettings, "dumped")
    assert settings.model_dump(exclude_unset=True) == tree
