"""Importing the package stays light: nothing heavy until a name is used, and then torch only."""

import json
import subprocess
import sys

import pytest

HEAVY = ("transformers", "datasets", "matplotlib", "pydantic", "typer", "scipy", "sympy", "yaml", "jinja2")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("statement", "torch"),
    [
        ("import stabledllm", False),
        pytest.param("from stabledllm import Method; Method.parse('mirror')", True, marks=pytest.mark.long),
        pytest.param(
            "from stabledllm.noise.objective import Objective; import stabledllm", True, marks=pytest.mark.long
        ),
        pytest.param(
            "from stabledllm import Lab; Lab(lambda ids, mask: (ids + 0.0)[..., None].expand(-1, -1, 9),"
            " [([1, 2], 1)] * 4, mask_id=8)",
            True,
            marks=pytest.mark.long,
        ),
        (
            "from stabledllm import *; import stabledllm.ppots.record, stabledllm.gradient.components;"
            " Noise('mirror', mask_id=3); AlphaScheduler()",
            True,
        ),
    ],
)
def test_import_loads_nothing_heavy(statement, torch):
    """In a fresh interpreter, as this one has loaded whatever other tests need."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "stabledllm" in loaded
    assert ("torch" in loaded) == torch
    assert not set(HEAVY) & set(loaded)
