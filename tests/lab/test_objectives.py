"""Measuring and fitting under the objectives that weigh or choose tokens, and under a bell: whole commands, small."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from stabledllm.config.settings import DecomposeSettings, TrainSettings
from stabledllm.lab.decompose import run_decompose
from stabledllm.lab.fit import run_fit
from stabledllm.reports.printed import decomposition_text
from stabledllm.reports.tables import gradient_table
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


GRADIENTS = [
    ({"name": "bell"}, ["lowdisc+fixedcount", "complement"]),
    ({"window": [0.3, 0.8]}, ["lowdisc+ppots", "fixedcount+mirror"]),
    ({"name": "cart"}, ["fixedcount", "mirror"]),
    ({"name": "lift"}, ["lowdisc+fixedcount", "mirror"]),
    ({"name": "gift"}, ["lowdisc", "multisample"]),
]
GRAD = {"rows": 5, "view_rows": 4, "rates": 2, "masks": 2, "split_rows": 4, "steps": 4}


@pytest.mark.parametrize(("objective", "methods"), GRADIENTS, ids=[str(next(iter(o.values()))) for o, _ in GRADIENTS])
def test_the_gradients_noise_is_measured_under_every_objective(tmp_path, given, objective, methods):
    """Predicted, drawn and at equal compute, for every method; its ratios are shown beside those of the loss."""
    sizes = SIZES | {"steps": 4, "forwards": 4}
    more = {"objective": objective, "out": str(tmp_path), "methods": ["standard", *methods], "probe": PROBE}
    settings = DecomposeSettings(**given, **more, **sizes, gradient=True, grad=GRAD)
    record = run_decompose(settings, say=lambda _: None)
    parts = record["gradient"]
    for name in ("mask_pattern", "mask_rate", "data", "total"):
        assert math.isfinite(parts[name]["value"]), name
    chosen = objective.get("name") in ("lift", "gift")
    standard, *others = record["methods"]
    cost, level = standard["views"], standard["gradient"]["variance_at_equal_compute"]["value"]
    assert level == pytest.approx(cost * parts["total"]["value"] - parts["data"]["value"], rel=1e-6)
    for entry in others:
        assert entry["gradient"]["predicted_variance"]["value"] > 0
        assert math.isfinite(entry["gradient"]["relative_to_standard"]["value"])
    assert (parts["split"] is None) == (parts["floor"] is None) == chosen
    assert any("neither the least noise of a density nor what A is made of" in n for n in record["notes"]) == chosen
    text = list(decomposition_text(record, wide=True))
    assert ("which tokens are targets" in "\n".join(text)) != chosen
    plain = " ".join(gradient_table(record).note.split())
    assert ("exact counts" in plain) != chosen
    low, high = objective.get("window", [0.0, 1.0])
    shown = [t for each in (record["curves"], *record["densities"]) for t in each["t"]]
    assert low < min(shown) < low + 0.1, "mask ratios, not places"
    if objective.get("name") == "bell":
        for each in record["densities"]:
            places = special.betainc(2, 2, each["t"])
            assert places == pytest.approx((np.arange(len(places)) + 0.5) / len(places), abs=1e-5)
    assert max(shown) < high
