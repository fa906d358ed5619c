"""What the shell is offered after a tab."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stabledllm.cli.completion import complete_setting, named_values
from stabledllm.cli.grammar import GRAMMARS
from stabledllm.config import shipped_recipes
from stabledllm.noise.parts import PARTS
from tests.cli.runner import ROOT

TRAIN = GRAMMARS["train"]


def offered(words: list[str], incomplete: str, grammar=TRAIN) -> list[str]:
    return [one.value for one in complete_setting(grammar, words, incomplete)]


def test_keys():
    assert "batch=" in offered(["sft"], "")
    assert offered(["sft"], "data.val") == ["data.validation=", "data.validation_share=", "data.validation_rows="]
    assert offered(["sft"], "step") == ["steps=", "steps=N"], "two, so that the shell ends no word at steps="
    assert offered(["sft"], "--data.val") == [
        "--data.validation", "--data.validation_share", "--data.validation_rows",
    ]  # fmt: skip
    assert offered([], "--max") == ["--max_len"]
    assert offered([], "--data.max-l") == ["--data.max_len"]
    assert offered([], "--rows", GRAMMARS["eval"]) == ["--rows"]
    assert offered([], "nosuchkey") == []


@pytest.mark.parametrize(
    ("words", "incomplete", "values"),
    [
        (["--decoding.order"], "", ["confidence", "margin", "entropy", "random", "sequential"]),
        ([], "decoding.order=e", ["decoding.order=entropy"]),
        (["decoding.order", "="], "ma", ["margin"]),
        (
            [],
            "decoding.ord",
            [f"decoding.order={x}" for x in ("confidence", "margin", "entropy", "random", "sequential")],
        ),
        ([], "packing=", ["packing=true", "packing=false"]),
        (["--packing"], "batch", ["batch=", "batch=N"]),
        (["--method"], "fix", ["fixedcount"]),
        (["--method"], "lowdisc+fix", ["lowdisc+fixedcount"]),
        (["--method"], "lowdisc+low", []),
        (["--trainer.optim"], "adafac", ["adafactor"]),
        (["--device"], "c", ["cpu", "cuda", "cuda:0"]),
        ([], "data.train=syn", ["data.train=synthetic"]),
        (["--data.validation"], "reas", ["reasoning-gym"]),
        (["--steps"], "", []),
    ],
    ids=str,
)
def test_values(words, incomplete, values):
    assert offered(words, incomplete) == values


def test_lists_of_methods():
    assert offered(["--methods"], "standard,mir", GRAMMARS["decompose"]) == ["standard,mirror"]
    assert offered([], "methods=[standard,mir", GRAMMARS["decompose"]) == ["methods=[standard,mirror"]
    assert set(named_values(TRAIN.keys["method"])) == {"standard", *PARTS}


def test_zsh_keeps_an_option_and_its_value_together(monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "stabledllm train sft --method=fix")
    assert offered(["sft"], "fix") == ["fixedcount"]


@pytest.mark.processes
def test_bash_completes(tmp_path):
    """The script that --install-completion installs, asked as bash asks; nothing heavy is imported for it."""
    program = tmp_path / "stabledllm"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'stabledllm'\nfrom stabledllm.__main__ import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)}
    asked = """
source <(_STABLEDLLM_COMPLETE=source_bash stabledllm)
ask() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _stabledllm_completion stabledllm
    echo "${COMPREPLY[*]}"
}
ask stabledllm train sft-sy
ask stabledllm cp accelerate/fs
ask stabledllm train sft-synthetic method = lowdisc+fi
ask stabledllm train sft-synthetic decoding.order =
"""
    done = subprocess.run(["bash", "-c", asked], env=env, capture_output=True, text=True, check=True)
    assert not done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["sft-synthetic"],
        ["accelerate/fsdp2"],
        ["lowdisc+fixedcount"],
        ["confidence", "margin", "entropy", "random", "sequential"],
    ]
    assert "sft-synthetic" in shipped_recipes()
