"""No secret is written or shown, and no text of others reaches a terminal as more than text."""

from __future__ import annotations

import json
import time

import pytest

from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text
from stabledllm.runtime.files import write_json
from stabledllm.runtime.secrets import HIDDEN, hidden, is_secret
from tests.cli.runner import assert_refused, in_process

SECRET = "hf_abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize(
    "name",
    ["hub_token", "trainer.hub_token", "token", "WANDB_API_KEY", "apiKey", "my-secret", "password", "ssh_key_file"],
)
def test_names_of_secrets(name):
    assert is_secret(name)
    assert hidden({name: "abc", "list": [{name: "abc"}]}) == {name: HIDDEN, "list": [{name: HIDDEN}]}


@pytest.mark.parametrize(
    "name", ["end_token", "mask_token", "eos_token", "text_fields", "tokenizer", "keyboard", "max_tokens", "monkey", ""]
)
def test_names_of_no_secrets(name):
    assert not is_secret(name)
    assert hidden({name: "abc"}) == {name: "abc"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SECRET, HIDDEN),
        (f"model {SECRET}, as it was", f"model {HIDDEN}, as it was"),
        ("https://me:word@host/x.git", f"https://{HIDDEN}@host/x.git"),
        ("lr=1,api_token=xyz", f"lr=1,api_token={HIDDEN}"),
        ("WANDB_API_KEY=123 stabledllm", f"WANDB_API_KEY={HIDDEN} stabledllm"),
        ("https://host/x?access_token=abc&n=1", f"https://host/x?access_token={HIDDEN}&n=1"),
        ("KEY=VALUE, end_token=<eot>, tokens: 12, a token = b", "KEY=VALUE, end_token=<eot>, tokens: 12, a token = b"),
    ],
)
def test_secrets_within_texts(text, shown):
    assert hidden(text) == shown
    assert hidden(shown) == shown


def test_numbers_stay(tmp_path):
    assert hidden({"num_key_value_heads": 4, "token": None, "x": (1, 2.5, True)}) == {
        "num_key_value_heads": 4,
        "token": None,
        "x": [1, 2.5, True],
    }


@pytest.mark.parametrize("text", ["9" * 200_000, "a-" * 100_000, "token" * 40_000, "token=" * 30_000, "sk-" * 70_000])
def test_long_texts_take_no_time(text):
    started = time.perf_counter()
    hidden(text)
    plain_text(text)
    assert time.perf_counter() - started < 1


def test_whatever_is_written_as_json_hides_them(tmp_path):
    config = {
        "trainer": {"optim_args": "a=1,auth_token=word", "deepspeed": {"api_key": "word"}},
        "model": "s://u:word@h",
    }
    write_json(tmp_path / "run.json", {"config": config, "history": [1.0, None]})
    text = (tmp_path / "run.json").read_text()
    assert "word" not in text
    assert json.loads(text)["history"] == [1.0, None]


@pytest.mark.parametrize("command", ["train", "validate", "fit"])
def test_a_token_on_the_command_line_is_not_repeated(tmp_path, command):
    recipe = [] if command == "fit" else ["sft-synthetic"]
    result = in_process(command, *recipe, f"trainer.hub_token={SECRET}", cwd=tmp_path)
    assert_refused(result, "trainer.hub_token", "network")
    assert SECRET not in result.stderr + result.stdout
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("\x9b2J \x7f \0", "\\x9b2J \\x7f \\x00"),
        ("\u202egnp.exe \u2028 \ufeff \ud800 \U000e0041", "\\u202egnp.exe \\u2028 \\ufeff \\ud800 \\U000e0041"),
        ("é 答案 👩\u200d🔬 ± \xad", "é 答案 👩\u200d🔬 ± \xad"),
        ("שלום\u200f! \u200e3 \u061c؟ \u06dd١ \u2066x", "שלום\u200f! \u200e3 \u061c؟ \u06dd١ \\u2066x"),
    ],
)
def test_plain_text(text, shown):
    assert plain_text(text) == shown
    assert plain_text(shown) == shown
    assert str(UserError(text)) == shown


def test_plain_text_keeps_lines_where_asked_and_cuts_in_the_middle():
    assert plain_text("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"
    cut = plain_text("a" * 1000 + "z")
    assert len(cut) < 300
    assert cut.startswith("aaa")
    assert cut.endswith("z")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "no\x1b[2Jwhere"],
        ["validate", "sft-synthetic", "model=\x1b]0;x\x07"],
        ["validate", "sft-synthetic", "method=a\x1b[31m"],
        ["validate", "sft-synthetic", "\x1b[31m=1"],
        ["validate", "sft-synthetic", "data.train=\u202ex"],
        ["decompose", "--data", "jsonl:\x1b[31m.jsonl"],
        ["report", "\x1b[31m"],
        ["merge", "\x1b[31m", "--out", "x"],
    ],
)
def test_no_command_passes_them_on(tmp_path, arguments):
    result = in_process(*arguments, cwd=tmp_path)
    assert not set("\x1b\x07\u202e") & set(result.stdout + result.stderr)
