"""``decompose --gradient`` and ``recommend`` as a user runs them, small; the recipe they end with is one."""

from __future__ import annotations

import json

import pytest
import yaml

from stabledllm.config.recipe import check
from stabledllm.config.settings import TrainSettings
from tests.cli.runner import assert_refused, in_process
from tests.fakes.run import write_model

pytestmark = pytest.mark.slow
SMALL = [
    "rows=6", "rates=4", "masks=2", "steps=5", "probe.rows=6", "probe.rates=4", "probe.starts=2", "grad.rows=8",
    "grad.view_rows=6", "grad.rates=3", "grad.steps=5", "forwards=8", "data.train_rows=40",
]  # fmt: skip
METHODS = "ppots-head,mirror,lowdisc+fixedcount,clipped"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recommend")
    write_model(folder / "base")
    result = in_process("recommend", *SMALL, "--model", "base", "--methods", METHODS, "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout


def test_recommend_ends_with_lines_that_are_a_recipe(measured):
    _, printed = measured
    recipe = printed.rpartition("# stabledllm train recipe.yaml\n")[2]
    settings = check(yaml.safe_load(recipe), TrainSettings, "pasted")
    assert settings.method in ("standard", *METHODS.split(","))
    assert settings.method != "clipped", "biased"
    assert settings.batch in (4, 8)
    assert "MIRROR alone" in printed


def test_the_record_holds_the_gradient_of_every_method(measured):
    folder, printed = measured
    record = json.loads((folder / "out" / "decomposition.json").read_text())
    estimate = {"value", "stderr", "n", "unit", "ci_low", "ci_high"}
    for name in ("mask_pattern", "mask_rate", "data", "total", "noise_scale"):
        assert set(record["gradient"][name]) == estimate
    assert record["gradient"]["mask_pattern"]["unit"] == "(nats/param)²"
    by_method = {m["method"]: m["gradient"] for m in record["methods"]}
    assert set(by_method) == {"standard", *METHODS.split(",")}
    for name, entry in by_method.items():
        assert set(entry["measured_variance"]) == estimate
        assert {"clipped", "update", "pareto_k", "heavy_tail", "clipped_share"} <= set(entry)
        assert (entry["relative_to_standard"] is None) == (name == "clipped")
    assert by_method["standard"]["relative_to_standard"]["value"] == 1.0
    parts = record["gradient"]
    together = parts["mask_pattern"]["value"] + parts["mask_rate"]["value"]
    assert by_method["standard"]["variance_at_equal_compute"]["value"] == pytest.approx(together)
    assert "Gradient noise of each method" in printed
    assert (folder / "out" / "equal_compute_gradient.png").stat().st_size > 10_000


def test_recommend_from_a_stored_record_says_the_same(measured):
    folder, printed = measured
    again = in_process("recommend", "--from", "out", cwd=folder)
    assert again.returncode == 0, again.stderr[-2000:]
    assert printed.endswith(again.stdout[again.stdout.index("# stabledllm") :])
    by_loss = in_process("recommend", "--from", "out/decomposition.json", "--by", "loss", cwd=folder)
    # So few steps say nothing of the loss's variance, and no method is recommended by it.
    assert_refused(by_loss, "another unbiased method with an interval of the loss's noise")


@pytest.mark.parametrize("objective", ["normalization=token", "weighting=unweighted"])
def test_the_gradient_is_measured_under_the_objective_that_is_asked_for(measured, objective, tmp_path):
    asking = ["--gradient", *SMALL, f"objective.{objective}", "--model", str(measured[0] / "base")]
    result = in_process("decompose", *asking, "--methods", "mirror", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    asked, default = (
        json.loads((folder / "out" / "decomposition.json").read_text()) for folder in (tmp_path, measured[0])
    )
    for name in ("mask_pattern", "total"):
        assert asked["gradient"][name]["value"] != pytest.approx(default["gradient"][name]["value"], rel=0.01)
    updates = [{m["method"]: m["gradient"]["update"] for m in record["methods"]} for record in (asked, default)]
    assert updates[0]["standard"] != updates[1]["standard"]
    assert updates[0]["mirror"] != updates[1]["mirror"]


def test_refusals(measured):
    folder, _ = measured
    assert_refused(in_process("recommend", "--by", "luck", cwd=folder), "gradient or loss")
    assert_refused(in_process("recommend", "--from", "out", "rows=3", cwd=folder), "no settings beside --from")
    assert_refused(in_process("recommend", "--from", "nowhere", cwd=folder), "nowhere")
    assert_refused(in_process("decompose", "--methods", "adaptive", cwd=folder), "tends to that of 'ppots'")
    named = in_process("decompose", "--gradient", *SMALL, "grad.parameters=[heads.*]", "--methods", "ppots", cwd=folder)
    assert_refused(named, "no trainable parameter matches 'heads.*'")


SMALLEST = [
    "rows=2", "rates=2", "masks=2", "steps=4", "forwards=2", "probe.rates=4", "probe.masks=2", "probe.starts=1",
    "grad.rows=4", "grad.view_rows=4", "grad.rates=2", "grad.masks=2", "grad.steps=4", "grad.split_rows=4",
    "data.train_rows=8", "methods=[standard,ppots,strats+ppots,ppots-gradient,lowdisc+ppots+fixedcount,mirror]",
]  # fmt: skip


def test_the_smallest_sizes_measure_or_are_refused_before_anything_is_measured(tmp_path):
    """Under strata p(t) follows the variance over rows, of which the cross-fit leaves one out: one alone has none."""
    write_model(tmp_path / "base")
    words = ["decompose", "--gradient", "--model", "base", "--out", "out", *SMALLEST]
    refused = in_process(*words, "probe.rows=2", cwd=tmp_path)
    assert_refused(refused, "at least 3 training rows to probe for method 'strats+ppots'", "found probe.rows=2")
    assert "decompose:" not in refused.stderr, "no bar was drawn"
    done = in_process(*words, "probe.rows=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mistake of stabledllm" not in done.stderr
