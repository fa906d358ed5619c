"""``Lab`` on the shipped model gives the numbers of the command line, and its files are read where the CLI's are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from stabledllm import AlphaScheduler, Lab, Method, MethodOptions, Noise
from stabledllm.config.recipe import apply_overrides, check
from stabledllm.config.settings import DataSettings, DecomposeSettings, TrainSettings
from stabledllm.data.bundle import load_rows
from stabledllm.lab import decompose, fit
from stabledllm.lab.recommendation import recommend
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.ppots.record import FittedDensity
from stabledllm.reports.html import write_report
from tests.cli.runner import in_process
from tests.fakes.tiny import model

pytestmark = pytest.mark.long

SMALL = {
    "rows": 6,
    "rates": 3,
    "masks": 2,
    "steps": 4,
    "probe": {"rows": 6, "rates": 4, "masks": 2, "family": "tabulated"},
}
GRAD = {"rows": 6, "view_rows": 4, "rates": 2, "steps": 4}
PROBE = {"rows": 6, "rates": 4, "masks": 2, "family": "tabulated"}
METHODS = ["ppots", "mirror", "fixedcount", "lowdisc+ppots-head+fixedcount"]
NAMES = ("config", "model", "data", "seconds", "notes", "versions", "recommendation")
"""Where the two records differ: what things are called, how long it took, and how the method is plugged in."""


@pytest.fixture(scope="module")
def wide():
    """A small model in float64, in which the order of a sum changes nothing to speak of."""
    return LoadedModel(model(), ByteTokenizer(), "small")


@pytest.fixture(scope="module")
def lab(wide):
    rows, _ = load_rows("synthetic", wide.tokenizer, DataSettings(train="synthetic"), "train", 12)
    kept = MethodOptions(mirror_below=0.9)
    return Lab(
        wide.model, rows, mask_id=wide.mask_id, pad_id=wide.pad_id, seed=3, batch=4, method_options=kept, progress=False
    )


@pytest.fixture
def command(wide, monkeypatch, tmp_path):
    """The commands on that model."""
    monkeypatch.setattr(decompose, "load_model", lambda *_, **__: wide)
    monkeypatch.setattr(fit, "build_model", lambda _: wide)
    common = {"data": {"train": "synthetic", "train_rows": 12}, "seed": 3, "out": str(tmp_path)}

    def run(kind: type, **settings):
        tree = common | settings | {"method_options": {"mirror_below": 0.9}}
        return check(apply_overrides(tree, []), kind, "test")

    return run


def assert_same(found: object, expected: object, where: str = "") -> None:
    """Equal but for rounding, to 1e-6 of the value."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(expected, float) and found is not None:
        assert math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9) or math.isnan(found + expected), where
    else:
        assert found == expected, where


def without_names(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in NAMES}


def test_decompose_with_gradient_and_recommend(lab, command):
    plain = lab.decompose(methods=METHODS, **SMALL)
    found = lab.decompose_gradient(methods=METHODS, grad=GRAD, **SMALL)
    settings = command(DecomposeSettings, methods=METHODS, forwards=4, gradient=True, grad=GRAD, **SMALL)
    expected = decompose.run_decompose(settings, lambda _: None)
    assert_same(without_names(found.record), without_names(expected))
    assert found.record["notes"][1:] == expected["notes"][1:]
    assert plain.record["gradient"] is None
    assert_same(plain.record["loss"], expected["loss"])
    assert [m["relative_to_standard"] for m in plain.record["methods"]] == [
        m["relative_to_standard"] for m in found.record["methods"]
    ], "measured once"

    choice, own = recommend(expected), lab.recommend(methods=METHODS, grad=GRAD, **SMALL)
    told = own.record["recommendation"]
    assert (told["measured_as"], told["quantity"], told["best"]) == (choice.measured_as, choice.quantity, choice.best)
    assert_same([told[k] for k in ("ratio", "ci_low", "ci_high")], [choice.ratio, choice.ci_low, choice.ci_high])


@pytest.mark.parametrize("method", ["ppots", "lowdisc+ppots+mirror", "ppots-head"])
def test_fit(lab, command, method, tmp_path):
    proxy = {"check_proxy": True} if method == "ppots-head" else {}
    found = lab.fit(method, **PROBE, **proxy)
    settings = command(TrainSettings, method=method, batch=4, ppots=PROBE | proxy)
    expected = fit.run_fit(settings, tmp_path / "p_of_t.json", lambda _: None).record
    assert found.record.pop("config") == expected.pop("config") | {"model": "TinyMDM"}
    assert_same(found.record, expected)


def test_the_shipped_model_s_parts_are_the_command_line_s_to_a_thousandth(tmp_path):
    loaded = load_model("tiny")
    rows, _ = load_rows("synthetic", loaded.tokenizer, DataSettings(train="synthetic"), "train", 12)
    found = Lab(loaded.model, rows, mask_id=loaded.mask_id, pad_id=loaded.pad_id, batch=4, progress=False).decompose(
        methods="fixedcount", **SMALL
    )
    flat = [f"{k}={v}" for k, v in SMALL.items() if k != "probe"] + [
        f"probe.{k}={v}" for k, v in SMALL["probe"].items()
    ]
    done = in_process(
        "decompose", *flat, "forwards=4", "data.train_rows=12", "--methods", "fixedcount", "--out", "d", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads((tmp_path / "d/decomposition.json").read_text())
    for name in ("mask_pattern", "mask_rate", "data", "total", "mean"):
        assert found.record["loss"][name]["value"] == pytest.approx(expected["loss"][name]["value"], rel=1e-3)
    tables = [line for line in done.stdout.splitlines() if line.startswith("Noise of each method")]
    assert tables
    assert str(found).splitlines()[0] == "Where the variance of one row comes from"
    assert found.save(tmp_path / "own")[0].name == "decomposition.json"
    assert {p.name for p in (tmp_path / "own").iterdir()} == {p.name for p in (tmp_path / "d").iterdir()} - {"run.lock"}


def test_what_is_saved_is_read_everywhere(lab, tmp_path):
    found = lab.fit(**PROBE)
    paths = found.save(tmp_path / "fit")
    assert [Path(p).name for p in paths] == ["p_of_t.json", "p_of_t.png"]
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for sampler in (AlphaScheduler(paths[0]).sampler, Noise("ppots", mask_id=256, p_of_t=paths[0]).sampler):
        assert torch.equal(sampler.weight(t), found.sampler.weight(t))
    assert Method.parse("ppots").sampler(found.sampler) is found.sampler
    FittedDensity.load(paths[0]).refuse_other(Method.parse("ppots"), "p_of_t", block_size=None)  # as a recipe's p_of_t
    lab.decompose(methods=METHODS, **SMALL).save(tmp_path / "decompose")
    assert write_report(tmp_path).stat().st_size > 10_000
