"""Every test that starts a process is marked so: ``-m "not processes"`` leaves them out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent
STARTS = {"subprocess.run", "subprocess.Popen", "multiprocessing.get_context", "jobs"}
"""What starts one: these calls, and a study told its ``jobs``."""
COMMAND_LINE = {
    re.compile(r"from tests\.cli\.runner import .*\bstabledllm\b"): {"stabledllm"},
    re.compile(r"from tests\.cli\.forked import "): {"command", "Forked"},
}
"""What starts one in a module that imports it so."""


def names(function: ast.AST) -> set[str]:
    """Every name that a function reads, calls, passes by keyword or takes, fixtures among them."""
    found = set()
    for node in ast.walk(function):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name):
                found.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
                found.add(f"{module}.{name}")
            case ast.keyword(arg=str(name)) if name == "jobs":
                found.add(name)
    return found


def starting(source: str) -> list[ast.FunctionDef]:
    """The tests of a module that start a process, themselves or through its helpers and fixtures."""
    body = ast.parse(source).body
    functions = {f.name: f for f in body if isinstance(f, ast.FunctionDef)}
    constants = {
        node.targets[0].id: node for node in body if isinstance(node, ast.Assign) and hasattr(node.targets[0], "id")
    }
    uses = {name: names(node) for name, node in (functions | constants).items()}
    imported = [names for line, names in COMMAND_LINE.items() if line.search(source)]
    found, before = STARTS.union(*imported), set()
    while before != found:
        before = set(found)
        found |= {name for name, used in uses.items() if used & found}
    return [functions[name] for name in functions if name in found and name.startswith("test_")]


@pytest.mark.parametrize("path", sorted(HERE.rglob("test_*.py")), ids=lambda path: str(path.relative_to(HERE)))
def test_what_starts_a_process_is_marked(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    if "pytestmark = pytest.mark.processes" in source:
        return
    bare = [f.name for f in starting(source) if not any("mark.processes" in ast.unparse(d) for d in f.decorator_list)]
    assert not bare, "these start a process and are not marked"


def test_a_test_that_starts_one_through_a_fixture_is_noticed() -> None:
    source = "def done():\n    subprocess.run([])\n\n\ndef test_it(done):\n    pass\n\n\ndef test_other():\n    pass\n"
    assert [f.name for f in starting(source)] == ["test_it"]


def test_make_test_and_make_test_long_are_together_all_tests_and_both_are_run():
    """A test that is marked ``long`` is run by the other of the two, never by none."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    short, long = re.findall(r"(?m)^\t\$\(PYTEST\) (tests --ignore tests/install) -m (.*)$", makefile)
    assert short[0] == long[0]
    assert (short[1], long[1]) == ('"not long"', "long")
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"make test", "make test-long", "make test-install"} <= set(run)
