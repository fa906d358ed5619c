"""The plug points in the packages they are for, of which the suite has stand-ins alone."""

from __future__ import annotations

import pytest

from tests.cli.runner import ROOT
from tests.install.environments import Environment

pytestmark = pytest.mark.processes


def test_automodels_strategy_and_trls_collator(tmp_path):
    """Automodel without what it trains with: its strategies and losses need torch alone."""
    environment = Environment(tmp_path / "venv")
    environment.link("torch", "numpy", "scipy", "transformers", "accelerate", "pytest", "pytest-timeout", "hypothesis")
    environment.fetch("trl==1.16.0")
    environment.fetch("--no-deps", "nemo-automodel==0.7.0")
    tests, which = ROOT / "tests/integrations/test_plugs.py", "automodels_own or trls_own"
    done = environment.run(
        "python", "-m", "pytest", "-rs", tests, "-k", which, "--rootdir", ROOT, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
