"""What policy gradients and preferences log over the steps is on the page, with what decoding took beside forwards."""

from __future__ import annotations

import pytest

from stabledllm.reports import figures
from stabledllm.reports.figures.responses import curves_of
from stabledllm.reports.html import write_report
from stabledllm.reports.labels import CURVES, curve_label
from stabledllm.reports.run_tables import cost_table, runs_table
from stabledllm.reports.tables import metrics_table
from stabledllm.training.history import PAIRS, POLICY
from tests.fakes import results as made_up
from tests.fakes.results import est, put

LINE = {"reward": 0.4, "reward_std": 0.2, "rewards/task/mean": 0.4, "completions/mean_length": 30.0, "kl": 0.01}


def learnt(methods=("standard", "espo"), **more) -> dict:
    """Results of policy gradients whose rewards rise; ``more`` is in every line of their logs."""
    stored = made_up.results(list(methods), 2)
    for run in stored["runs"]:
        lines = [{"step": s, "loss": 0.0} | {k: v * (1 + s / 20) for k, v in (LINE | more).items()} for s in (2, 4, 6)]
        run["history"] = lines
        run["metrics"]["reward"] = est(lines[-1]["reward"], 0.02, unit="")
        run["rollout_forward_rows"] = 1234
    return stored


def test_all_that_is_drawn_is_logged():
    assert set(CURVES) <= {*POLICY, *PAIRS}


def test_a_reward_of_several_is_drawn_by_its_name_and_one_alone_once():
    assert curves_of(learnt()) == ["reward", "reward_std", "completions/mean_length", "kl"]
    several = curves_of(learnt(**{"rewards/short/mean": 0.1}))
    assert several[2] == "rewards/task/mean"
    assert several[-1] == "rewards/short/mean"
    assert curve_label("rewards/short/mean") == "reward: short"


def test_what_never_moved_is_not_drawn():
    stored = learnt()
    for run in stored["runs"]:
        for line in run["history"]:
            line["kl"] = 0.0
    assert "kl" not in curves_of(stored)


def test_a_panel_has_a_line_and_a_band_for_every_method():
    figure = figures.response_curves(learnt(**{"completions/clipped_ratio": 0.1}))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left").replace("\n", " ") for axes in shown] == [CURVES[name] for name in curves_of(
        learnt(**{"completions/clipped_ratio": 0.1}))]  # fmt: skip
    assert all(len(axes.lines) == 2 and len(axes.collections) == 2 for axes in shown)


def test_no_title_is_wider_than_its_panel():
    long = "rewards/" + "long " * 9 + "/mean"
    figure = figures.response_curves(learnt(**dict.fromkeys(("frac_reward_zero_std", long), 0.1)))
    figure.draw_without_rendering()
    for axes in (axes for axes in figure.axes if axes.get_visible()):
        assert axes._left_title.get_window_extent().width <= axes.get_window_extent().width + 1


@pytest.mark.parametrize("name", ["rewards/margins", "rewards/accuracies", "loss_bias"])
def test_preferences_have_their_curves(name):
    assert name in curves_of(learnt(**{name: 0.2}))


def test_the_page_tells_rollouts_apart(tmp_path):
    stored = learnt()
    put(tmp_path, "results.json", stored)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Responses during training" in text
    assert "ESPO" in text
    assert "Reward at the end of training" in text
    for table in (cost_table(stored), runs_table(stored)):
        place = next(i for i, column in enumerate(table.columns) if column.startswith("forward rows of decoding"))
        assert all(row[place] == "1,234" for row in table.rows)


def test_other_runs_have_neither(tmp_path):
    stored = made_up.results(["standard"], 2)
    assert figures.response_curves(stored) is None
    assert not any("decoding" in column for column in (*cost_table(stored).columns, *runs_table(stored).columns))


def test_a_reward_and_a_margin_may_be_negative():
    stored = learnt()
    for metric in ("reward", "preference_margin"):
        stored["summary"] = [
            {"method": "standard", "metric": metric, "n": 2, "mean": -0.5, "sd": 0.1, "ci_low": -1.4, "ci_high": 0.4}
        ]
        (interval,) = [cell for cell in metrics_table(stored, metric).rows[0] if " to " in cell]
        assert interval.startswith("-1.400")
