"""The house keeps its order: floors that import downwards only, and one place for what only one place may do."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/stabledllm"
FILES = sorted(SOURCE.rglob("*.py"))

BREAKS = {
    "Every package knows only those on the floors below": ("models/new.py", "from stabledllm.training import run"),
    "What is drawn, the loss and the statistics stand on the errors alone": ("noise/schedule.py", "import pydantic"),
    "The loss imports nothing of ours": ("loss.py", "from stabledllm.errors import UserError"),
    "The core reaches no package but torch, numpy and scipy": ("models/evaluating.py", "import transformers"),
    "Tasks need no torch": ("tasks/numbers.py", "import torch"),
    "Reports format what is stored and compute nothing": ("reports/numbers.py", "import scipy"),
}
"""For each contract of pyproject.toml a line that breaks it, and where."""


def broken_contracts(source: Path) -> dict[str, str]:
    """The contracts that import-linter calls broken in a tree of sources, and what it says of each."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(
        [*command, "--no-cache", "--no-logo"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    verdicts = re.findall(r"(?m)^(.+) (KEPT|BROKEN)(?: \(\d+ ignored imports\))?$", done.stdout)
    assert len(verdicts) == len(BREAKS), done.stdout + done.stderr
    assert (done.returncode == 0) == all(verdict == "KEPT" for _, verdict in verdicts)
    said = re.split(r"(?m)^(.+)\n-+\n", done.stdout)
    about = dict(zip(said[1::2], said[2::2], strict=True))
    return {name: about[name] for name, verdict in verdicts if verdict == "BROKEN"}


@pytest.mark.processes
def test_no_package_imports_one_above_it():
    assert broken_contracts(SOURCE.parent) == {}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A tree with every line of the table, and what is said of its contracts."""
    tree = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(SOURCE, tree / "stabledllm", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    for file, line in BREAKS.values():
        path = tree / "stabledllm" / file
        path.write_text(f"{path.read_text()}\n{line}\n")
    return tree / "stabledllm", broken_contracts(tree)


@pytest.mark.processes
@pytest.mark.parametrize("contract", BREAKS)
def test_a_contract_broken_on_purpose_fails(contract, spoilt):
    """By the very line that is to break it, which is named: another may break the same contract."""
    tree, said = spoilt
    file, _ = BREAKS[contract]
    importer = f"stabledllm.{file.removesuffix('.py').replace('/', '.')}"
    last = len((tree / file).read_text().splitlines())
    assert re.search(rf"\b{re.escape(importer)} -> \S+ \(l\.{last}\)", said[contract])


def walks() -> list[list[str]]:
    """The files of each walk that CONTRIBUTING describes, in their order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = re.findall(r"(?m)^From `stabledllm \w+` to .*:\n\n((?:\d\. .*\n?)+)", text)
    return [re.findall(r"(?m)^\d\. `([\w/]+\.py)`", part) for part in parts]


def imported_by(file: str) -> set[str]:
    """The files of the sources that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse((SOURCE / file).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stabledllm"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {f"{name.removeprefix('stabledllm.').replace('.', '/')}.py" for name in names}


def test_the_walks_lead_downwards():
    """Every stop is imported by a stop before it, and stands on the same floor as the stop before it or below."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = [re.split(r" \| ", layer) for layer in settings["contracts"][0]["layers"]]
    floor = {room: number for number, rooms in enumerate(floors) for room in rooms}
    assert len(walks()) == 3
    for walk in walks():
        assert 2 <= len(walk) <= 6
        heights = [floor[file.split("/")[0].removesuffix(".py")] for file in walk]
        assert heights == sorted(heights), walk
        for number, file in enumerate(walk[1:], 1):
            assert any(file in imported_by(earlier) for earlier in walk[:number]), f"nobody before it imports {file}"


def names_in(path: Path) -> set[str]:
    """Every name and attribute that a file uses or imports."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            out.add(node.id)
        elif isinstance(node, ast.Attribute):
            out.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            out.update(alias.name for alias in node.names)
    return out


def users_of(*names: str) -> set[str]:
    """The files, relative to the sources, in which one of the names stands."""
    return {path.relative_to(SOURCE).as_posix() for path in FILES if names_in(path) & set(names)}


def test_only_training_knows_the_trainer():
    users = users_of("Trainer", "TrainingArguments", "TrainerCallback", "TrainerState")
    assert users
    assert {name.split("/")[0] for name in users} == {"training"}


def test_one_file_reads_what_was_pretrained():
    assert users_of("from_pretrained") == {"models/pretrained.py"}


def test_every_file_is_short():
    long = {path.relative_to(SOURCE).as_posix(): n for path in FILES if (n := len(path.read_text().splitlines())) > 300}
    assert long == {}


@pytest.mark.processes
def test_the_spine_does_not_grow():
    script = ROOT / "scripts/count_spine.py"
    assert subprocess.run([sys.executable, script], capture_output=True).returncode == 0
