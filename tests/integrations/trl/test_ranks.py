"""Two gloo processes of half a step each take the steps of one process."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl", reason="the package trl is not installed")

from tests.cli.forked import Forked, ranks
from tests.integrations.trl import test_dpo, test_grpo
from tests.integrations.trl.ranks import main

pytestmark = pytest.mark.processes
KINDS = {"dpo": (test_dpo, {}), "grpo": (test_grpo, {"beta": 0.1, "num_iterations": 2, "learning_rate": 0.02})}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_take_the_same_steps(tmp_path, kind):
    module, further = KINDS[kind]
    whole = module.run(tmp_path / "whole", **further)
    launched = ranks(lambda env: Forked(lambda: main(tmp_path, module.make, **further), tmp_path, env))
    for process in launched:
        ended = process.ended()
        assert ended.returncode == 0, ended.stderr[-3000:]
    for rank in range(2):
        weights = load_file(tmp_path / f"rank{rank}.safetensors")
        for name, p in whole.model.named_parameters():
            torch.testing.assert_close(weights[name], p.detach(), rtol=1e-6, atol=1e-9, msg=name)
