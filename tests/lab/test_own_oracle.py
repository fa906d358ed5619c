"""``Lab`` on a model that is a table: A, B, C, the gradient's and the bound against their enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stabledllm import Lab, Objective, UserError
from tests.checks.mask_split import exact_parts
from tests.checks.statistics import Z, assert_mean
from tests.fakes.own import KINDS, MASK, TableModel, table_rows
from tests.oracle import Setting, decomposition, objective_by_quadrature

EPS = 0.1
EXACT = decomposition(Setting(eps=EPS), KINDS)
PARTS = {"mask_pattern": "A", "mask_rate": "B", "data": "C"}


def lab(model: TableModel, rows: int, seed: int = 0) -> Lab:
    return Lab(model, table_rows(rows), mask_id=MASK, objective=Objective(eps=EPS), seed=seed, batch=4, progress=False)


SMALL = {"rates": 6, "masks": 4, "design": "iid", "steps": 4, "probe": {"rows": 6, "rates": 4, "starts": 1}}


@pytest.mark.statistical
def test_the_parts_of_the_loss_and_of_the_gradient_are_those_of_enumeration():
    model = TableModel()
    few = {"rows": 12, "view_rows": 4, "rates": 3, "masks": 2, "steps": 4}
    records = [
        lab(model, 12, seed).decompose_gradient([model.theta], methods=[], rows=12, grad=few, **SMALL).record
        for seed in range(12)
    ]
    for quantity, place in (("loss", 0), ("gradient", 1)):
        for name, letter in PARTS.items():
            found = np.array([record[quantity][name]["value"] for record in records])
            assert_mean(found, float(EXACT[letter][place]), f"{letter} of the {quantity}")
    exact = [exact_parts(row, EPS) for row in KINDS]
    for name in ("count", "targets", "context"):
        found = np.array([record["gradient"]["split"][name]["value"] for record in records])
        assert_mean(found, np.mean([parts[name] for parts in exact]), f"{name} in A of the gradient")


@pytest.mark.statistical
def test_the_bound_takes_the_objective_s_eps():
    found = lab(TableModel(), 6).elbo("standard", budget=4)
    assert found.record["config"]["eps"] == EPS
    other = Lab(TableModel(), table_rows(6), mask_id=MASK, objective=Objective(eps=0.5), batch=4, progress=False)
    assert not torch.equal(other.elbo("standard", budget=4).bound.value, found.bound.value)


def test_each_row_s_bound_is_within_its_error():
    found = lab(TableModel(), 6).elbo("fixedcount", budget=128)
    for i, row in enumerate(found.record["rows"]):
        kind = KINDS[i % len(KINDS)]
        assert row["tokens"] == kind.size
        assert abs(row["value"] + kind.size * objective_by_quadrature(kind, EPS)[0]) < Z * row["stderr"]
    assert found.record["mean"]["value"] == pytest.approx(np.mean([row["value"] for row in found.record["rows"]]))


def test_shifted_logits_are_read_one_place_before():
    """The same table with its logits moved to the left gives the same bound under ``shift``, and is refused without."""

    def moved(input_ids, attention_mask):
        logits = TableModel()(input_ids, attention_mask)
        return torch.cat((logits[:, 1:], logits[:, -1:]), 1)

    plain = lab(TableModel(), 6).elbo(budget=2).bound.value
    shifted = Lab(moved, table_rows(6), mask_id=MASK, objective=Objective(eps=EPS), shift=True, progress=False)
    assert torch.equal(shifted.elbo(budget=2).bound.value, plain)
    with pytest.raises(UserError, match="padding"):  # the last token is then predicted from behind the row
        Lab(moved, table_rows(6), mask_id=MASK, progress=False)
