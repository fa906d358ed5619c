"""``validation_objective`` is the trained objective on the held-out rows: its mean, its error, its form in blocks."""

from __future__ import annotations

import pytest
import torch

from stabledllm.build import build_objective
from stabledllm.config.settings import ObjectiveSettings
from stabledllm.data.rows import TokenRow
from stabledllm.evaluation.validation import shares, validation_nll
from stabledllm.forward.blocks import loss_meter
from stabledllm.forward.meter import MeteredModel
from stabledllm.models.loading import load_model
from stabledllm.stats.estimate import Estimate
from tests.fakes.block_models import MASK_ID, write_fast_dllm
from tests.fakes.trainer import make_trainer
from tests.models.families.cases import random_ids
from tests.training.test_packing import varied

ROWS = [TokenRow(random_ids(1, 12 + 7 * i, seed=i)[0].clamp(max=255).tolist(), 3) for i in range(6)]
OBJECTIVE = build_objective(ObjectiveSettings(name="fast-dllm"))


@pytest.mark.parametrize("name", ["masked-mean", "llada2", "fast-dllm"])
def test_rows_of_unlike_length_whose_tokens_cost_alike_have_no_error(tmp_path, name):
    """A model whose logits are all equal: each token costs ln V, however many its row has."""
    objective = build_objective(ObjectiveSettings(name=name))
    trainer = make_trainer(tmp_path, objective=objective, evaluated=varied()[:8])
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    weight = shares(trainer.evaluation_meter(objective))
    assert float(weight.std()) > 0.1, "the rows are of unlike length"
    noisy, steady = (trainer.finite_nll_of_rows(objective), trainer.validation(objective))
    assert steady.value == pytest.approx(float(noisy.mean()))
    assert steady.stderr < 0.7 * float(noisy.std() / len(noisy) ** 0.5)


def test_a_blocks_first_token_is_asked_as_training_asks_it(tmp_path):
    """In Fast-dLLM v2 by the noisy block before it; the bound asks the clean one, as decoding does."""
    loaded = load_model(str(write_fast_dllm(tmp_path / "hub", std=0.5)))
    loaded.model.double()
    trainer = make_trainer(
        tmp_path, "complement", objective=OBJECTIVE, train=ROWS, evaluated=ROWS, block_size=8, model=loaded.model,
        ids=(MASK_ID, 256),
    )  # fmt: skip

    def measured(start: str) -> list[Estimate]:
        loaded.model.config.block_start = start
        return [trainer.validation(OBJECTIVE), trainer.validation()]

    noisy, clean = measured("noisy"), measured("clean")
    assert noisy[1] == clean[1], "the bound"
    assert noisy[0].value != pytest.approx(clean[0].value, rel=1e-6)
    loaded.model.config.block_start = "noisy"
    metered = MeteredModel(loaded.model, MASK_ID, 256)
    for as_trained, expected in ((True, noisy[0]), (False, clean[0])):
        meter = loss_meter(metered, ROWS, OBJECTIVE, block_size=8, as_trained=as_trained)
        assert validation_nll(meter) == expected, "eval and experiment report what train does"
