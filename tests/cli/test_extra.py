"""A command line without its packages, or beside older ones, says so in a sentence, whatever else was asked."""

from __future__ import annotations

import sys

import pytest

from stabledllm.cli import extra
from stabledllm.runtime.failures import sentence
from tests.cli.runner import assert_refused, in_process

NEEDS = ["torch>=2.4", 'numpy>=1.26; extra == "train"', 'wandb>=9999; extra == "wandb"']


@pytest.fixture
def needs(monkeypatch):
    """What the installed package says that it needs; asked anew."""
    found = list(NEEDS)
    monkeypatch.setattr(extra, "requires", lambda name: found)
    extra.require_extra.cache_clear()
    yield found
    extra.require_extra.cache_clear()


def test_what_is_there_is_enough(needs, tmp_path):
    assert in_process("ls", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("need", "words"),
    [
        ('no-such-package>=1; extra == "train"', ["expected no-such-package for", "pip install 'stabledllm[train]'"]),
        ('numpy<1; extra == "train"', ["expected numpy<1 for the command line, found ", "[train]', in another"]),
    ],
)
def test_a_command_without_it_is_refused_and_its_help_is_not(need, words, needs, tmp_path):
    needs.append(need)
    assert_refused(in_process("ls", cwd=tmp_path), *words)
    assert in_process("ls", "--help", cwd=tmp_path).returncode == 0


def test_it_is_said_where_the_package_of_the_bars_is_missing_too(needs, tmp_path, monkeypatch):
    needs.append('no-such-package>=1; extra == "train"')
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert_refused(in_process("ls", cwd=tmp_path), "expected no-such-package for")


def test_only_a_package_of_others_that_is_missing_is_no_mistake_of_ours():
    said = sentence(ModuleNotFoundError(name="sentencepiece"))
    assert said == "expected the package 'sentencepiece', found it not installed; pip install it."
    assert sentence(ModuleNotFoundError(name="stabledllm.nothing")) is None
    assert sentence(ModuleNotFoundError(name="transformers.nothing")) is None
    assert sentence(ImportError("cannot import name")) is None
