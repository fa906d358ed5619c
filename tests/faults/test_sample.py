"""A fault of each command, and a dozen damaged files; all of them by ``make faults``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.runner import ROOT

SAMPLE = int(os.environ.get("FAULTS_SAMPLE", "0"))
"""Which faults; another number takes others."""


@pytest.mark.long
@pytest.mark.processes
def test_a_sample_of_faults():
    env = os.environ | {
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
    }  # fmt: skip
    # A process of its own: its children are forked from it, which no other test's threads and state must reach.
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--sample", str(SAMPLE)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"FAULTS_SAMPLE={SAMPLE}\n{ended.stdout[-6000:]}{ended.stderr[-2000:]}"
