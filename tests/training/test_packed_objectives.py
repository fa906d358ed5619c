"""Every objective by name in packed blocks: no split of a step changes it, nor does padding, under a block schedule."""

from __future__ import annotations

import pytest

from stabledllm.build import build_objective
from stabledllm.config.objectives import NAMED
from stabledllm.config.settings import ObjectiveSettings
from stabledllm.training.block_schedule import BlockSizes
from tests.training.test_packed_blocks import assert_same, trained
from tests.training.test_packing import varied

METHODS = {
    "elbo": "adaptive+lowdisc+multisample3",
    "masked-mean": "adaptive+fixedcount+mirror",
    "llada2": "lowdisc+adaptive+fixedcount+partition3",
    "fast-dllm": "adaptive+complement",
    "sdar": "standard",
    "bd3lm": "strats+adaptive+mirror",
    "masked-mean-row": "fixedcount",
    "bell": "lowdisc+adaptive+fixedcount+mirror",
    "window-generation": "adaptive+partition3",
    "window-discriminative": "lowdisc+adaptive+fixedcount",
}
IN_BLOCKS = [name for name in NAMED if "tokens" not in NAMED[name].keys]  # single tokens are not weighed in blocks


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_splits_and_packing_change_nothing_under_a_block_schedule(tmp_path, name):
    keys = {"window": [0.4, 0.9]} if name == "bd3lm" else {}
    form = {
        "train": varied(),
        "block_size": BlockSizes((1, 64, 6), (2, 1)),
        "steps": 5,
        "one_t": name == "sdar",
        "objective": build_objective(ObjectiveSettings(name=name, **keys)),
    }
    padded = trained(tmp_path / "padded", METHODS[name], 8, 1, **form)
    packed = trained(tmp_path / "packed", METHODS[name], 8, 1, packing=True, **form)
    split = trained(tmp_path / "split", METHODS[name], 1, 8, packing=True, views_per_forward=1, **form)
    for other in (packed, split):
        assert_same(other, padded, rtol=1e-9)
        assert other.adaptive is None or other.adaptive.density == padded.adaptive.density
