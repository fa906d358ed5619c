"""The times that the README names are those that the script measured and stored."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.cli.runner import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_times", ROOT / "scripts" / "measure_times.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_names_what_was_measured(script):
    stored = script.line(json.loads(script.RECORD.read_text(encoding="utf-8")))
    assert script.LINE.findall(script.README.read_text(encoding="utf-8")) == [stored]


def test_a_line_names_what_is_in_its_record_and_rounds_up(script):
    times = {"quickstart": 107.2, "test": 352.01, "ls": 0.41, "power": 0.62}
    record = {"cores": 2, "times": {name: {"seconds": taken, "load": 0.0} for name, taken in times.items()}}
    assert script.line(record) == (
        "Measured on 2 idle cores by `scripts/measure_times.py`: `make quickstart` 108 s; `make test` 5 min 53 s; "
        "`ls`, `power` answer within 0.7 s."
    )
    assert script.LINE.fullmatch(script.line(record))


def test_every_entry_is_a_command_that_is_there(script):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{command[1]}: " in makefile for command in script.MADE.values())
    from stabledllm.cli.main import app

    known = {command.name for command in app.registered_commands}
    assert {command[0] for command in script.STARTED.values()} - {"--help"} <= known
