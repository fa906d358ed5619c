"""Measuring and fitting under the objectives that weigh or choose tokens, and under a bell: whole commands, small."""

from __future__ import annotations

import pytest

from stabledllm.build import build_methods
from stabledllm.config.settings import DecomposeSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.lab.decompose import run_decompose
from stabledllm.lab.fit import run_fit
from stabledllm.lab.measure.decompose import check_methods
from tests.fakes.run import write_model, write_rows

SIZES = {"rows": 6, "rates": 4, "masks": 2, "steps": 12, "forwards": 8}
PROBE = {"rows": 6, "rates": 4, "masks": 2, "starts": 2}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict:
    """A small random model and rows for it."""
    folder = tmp_path_factory.mktemp("given")
    return {
        "model": str(write_model(folder / "model")),
        "data": {"train": f"jsonl:{write_rows(folder / 'a.jsonl', 12)}"},
    }


CASES = [
    ("bell", ["lowdisc+ppots", "fixedcount+mirror"], 1.0),
    ("cart", ["lowdisc+fixedcount", "complement"], 1.0),
    ("lift", ["lowdisc+fixedcount", "ppots"], 1.4),
    ("gift", ["lowdisc", "ppots"], 2.0),
]


@pytest.mark.parametrize(("name", "methods", "cost"), CASES, ids=[name for name, *_ in CASES])
def test_decompose_measures_every_method_under_the_objective_that_is_trained(tmp_path, given, name, methods, cost):
    """All have the mean of Standard, which is not the bound's, and forwards that choose tokens are counted."""
    more = {"objective": {"name": name}, "out": str(tmp_path), "methods": ["standard", *methods], "probe": PROBE}
    said = []
    record = run_decompose(DecomposeSettings(**given, **more, **SIZES), say=said.append)
    standard, *others = record["methods"]
    assert standard["method"] == "standard"
    for other in others:
        one, two = (x["mean"] for x in (standard, other))
        assert abs(one["value"] - two["value"]) <= 4.3 * (one["stderr"] ** 2 + two["stderr"] ** 2) ** 0.5
    assert standard["views"] == pytest.approx(cost, abs=0.25 if name == "lift" else 1e-9)
    mirror = record["mirror"]
    assert mirror["cost"] == (1.5 if name == "gift" else 2)
    assert ("whose views share the forward" in mirror["sentence"]) == (name == "gift")
    for part in ("mask_pattern", "mask_rate", "data"):
        assert record["loss"][part]["value"] == record["loss"][part]["value"], "a number"


@pytest.mark.parametrize("name", ["bell", "lift", "gift"])
def test_a_density_is_fitted_under_the_objective_and_says_so(tmp_path, given, name):
    settings = TrainSettings.model_validate(given | {"method": "ppots", "ppots": PROBE, "objective": {"name": name}})
    density = run_fit(settings, tmp_path / "p_of_t.json", lambda _: None)
    objective = density.record["objective"]
    assert objective["weighting"] == ("bell" if name == "bell" else "elbo")
    assert objective["tokens"] == (name if name != "bell" else "all")


@pytest.mark.parametrize(
    ("objective", "found"),
    [({"name": "bell"}, "objective.weighting 'bell'"), ({"name": "lift"}, "objective.tokens=lift")],
)
def test_the_gradients_noise_is_refused_there(objective, found):
    methods = build_methods(DecomposeSettings(objective=objective))
    with pytest.raises(UserError, match=f"gradient=true and {found}.* contradict; write gradient=false"):
        check_methods(methods, gradient=True)
    check_methods(methods, gradient=False)
