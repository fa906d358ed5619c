"""docs/estimators.md: its commands are read, its table has every estimator, its own estimator is what the page says."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import torch

from stabledllm.config.settings.policy import FORWARDS, GRPOSettings
from stabledllm.likelihood.presets import Coupled
from tests.cli.runner import ROOT, in_process
from tests.likelihood import enumerated
from tests.likelihood.models import ROWS, gradient_by_differences, gradient_of_parts, tiny

PAGE = (ROOT / "docs" / "estimators.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
NUMBERS = [3, 0, 8]


@pytest.fixture(scope="module")
def own():
    """The page's estimator, of two nodes."""
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], names)
    return names["GDPO"]()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_read(command, tmp_path):
    _, train, *words = shlex.split(command)
    assert train == "train"
    words = [word.replace("runs/sft/model", "tiny") for word in words]  # of a run that the reader has
    result = in_process("validate", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_table_has_every_estimator_with_its_forwards_and_ratio():
    rows = re.findall(r"(?m)^\| `([\w-]+)` \|.*\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", PAGE)
    assert [name for name, _, _ in rows] == list(FORWARDS)
    for name, forwards, ratio in rows:
        assert forwards == ("its views" if name == "method" else str(FORWARDS[name]))
        published = GRPOSettings(estimator=name).ratio_in_force
        assert ratio.startswith({"mean": "of the response, per token", "token": "of each token"}[published])


def test_a_view_with_everything_masked_is_made_once_for_all_draws():
    assert "so that 6 are at most 5" in PAGE
    rows = [ROWS[2]] * 4  # of four tokens, few of whose masks are empty
    assert Coupled(6 // FORWARDS["coupled"]).draw(tiny(), rows, range(4), seed=0).forward_rows <= 5 * len(rows)


def test_the_page_s_estimator_is_its_quadrature(own):
    """From the formula: nodes at 1/2 -+ 1/sqrt(12), each of weight 1/2, a mask of round(t P) tokens at each."""
    model = tiny()
    draws = own.draw(model, ROWS, NUMBERS, seed=5, step=1)
    nodes = [0.5 - 12**-0.5, 0.5 + 12**-0.5]
    for row, masks, value in zip(ROWS, draws.mask, draws.values(model), strict=True):
        feature, expected = enumerated.log_probabilities(model, row), 0.0
        for t, mask in zip(nodes, masks, strict=True):
            hidden = frozenset(mask.nonzero()[:, 0].tolist())
            assert len(hidden) == max(1, round(t * row.response_length))
            expected += 0.5 / t * enumerated.total(feature, hidden)
        assert float(value) == pytest.approx(expected)
    assert draws.forward_rows == 2 * len(ROWS)


def test_the_page_s_estimator_has_shared_draws_and_one_backward_for_each_pass(own):
    model = tiny()
    draws = own.draw(model, ROWS, NUMBERS, seed=5, step=1)
    alone = own.draw(tiny(1), ROWS[1:2], NUMBERS[1:2], seed=5, step=1)
    assert torch.equal(alone.mask[0], draws.mask[1, :, : alone.mask.shape[2]])
    slopes = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    found = gradient_of_parts(model, draws, slopes)
    along = torch.from_numpy(np.random.default_rng(0).normal(size=len(found)))
    assert float(found @ along) == pytest.approx(gradient_by_differences(model, draws, slopes, along), rel=1e-5)
