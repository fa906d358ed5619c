"""What is shown of a grid of learning rates: tables, the picture and the page."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stabledllm.config.settings import ExperimentSettings
from stabledllm.errors import UserError
from stabledllm.experiment.results import over_rates
from stabledllm.reports import figures
from stabledllm.reports.html import write_report
from stabledllm.reports.printed import experiment_text
from stabledllm.reports.rates import rate_tables
from stabledllm.reports.run_tables import runs_table
from tests.fakes.rates import RATES, curve, losses, runs_of

METHODS = ["standard", "lowdisc+fixedcount", "mirror"]
SEEDS = [1, 2, 3, 4, 5, 6]


def made_up(norms: tuple[float, ...] = (1.0, 0.0), seeds: int = 6) -> dict:
    runs = []
    for norm in norms or (None,):
        every = losses([curve(0.012), curve(0.0004, best=0.0985), curve(0.02, best=0.106)], seeds, own=0.002)
        if norm == 0.0:
            every[0][1, 4] = every[2][:, 4] = np.inf
        runs += [run for method, nll in zip(METHODS, every, strict=True) for run in runs_of(method, nll, norm=norm)]
    keys = {"methods": METHODS, "seeds": SEEDS[:seeds], "learning_rates": RATES, "max_grad_norms": list(norms)}
    settings = ExperimentSettings.model_validate(keys)
    status = {"finished": len(runs), "planned": len(runs)}
    out = {"schema": "stabledllm/results/1", "config": settings.model_dump(), "status": status, "untuned": None}
    return json.loads(json.dumps(out | {"runs": runs, **over_rates(runs, settings), "notes": []}))


@pytest.fixture(scope="module")
def results() -> dict:
    return made_up()


def table(results: dict, title: str):
    (found,) = [table for table in rate_tables(results) if table.title.startswith(title)]
    return found


def test_the_table_of_ranges(results):
    found = table(results, "Learning rates within 2 % of the best validation NLL")
    rows = {row[0]: row[1:] for row in found.rows}
    assert list(rows)[:2] == ["standard, clipped at 1", "lowdisc+fixedcount, clipped at 1"]
    wide, lost = rows["lowdisc+fixedcount, clipped at 1"], rows["mirror, unclipped"]
    assert wide[0] == "≤ 0.0005 to ≥ 0.008"
    assert wide[1].startswith("≥ 16, ")
    assert wide[1].endswith(" to ∞")
    assert wide[2].startswith("≥ ")
    assert rows["standard, unclipped"][2] == "1"
    assert (lost[-2], lost[-1]) == ("6", "6 of 30")
    assert lost[4] == "0.002"


def test_the_tables_of_every_rate(results):
    loss = table(results, "Validation NLL (nats per token), by learning rate")
    assert loss.columns == ("method", "0.0005", "0.001", "0.002", "0.004", "0.008")
    rows = {row[0]: row[1:] for row in loss.rows}
    assert rows["standard, unclipped"][4].endswith("(1 diverged)")
    assert rows["mirror, unclipped"][4] == "– (6 diverged)"
    assert " ± " in rows["mirror, clipped at 1"][0]
    versus = {row[0]: row[1:] for row in table(results, "Validation NLL (nats per token) vs Standard").rows}
    assert versus["standard, clipped at 1"] == ("0",) * 5
    assert versus["mirror, clipped at 1"][0].startswith("+0.0")
    assert versus["mirror, unclipped"][4] == "–"
    assert table(results, "Outlier steps").rows[0][1:] == ("0", "0", "0", "3.5", "3.5")


def test_a_standard_that_always_diverged_at_a_rate_differs_from_nothing_there(results):
    lost = json.loads(json.dumps(results))
    point = lost["rates"]["curves"][0]["points"][4]
    point |= {"mean": None, "sd": None, "lowest": None, "highest": None, "n_diverged": point["n"]}
    versus = next(
        one for one in rate_tables(lost) if one.title.startswith("Validation NLL (nats per token) vs Standard")
    )
    assert versus.rows[0] == ("standard, clipped at 1", "0", "0", "0", "0", "–")


def test_rates_that_are_close_are_written_aslant(results):
    def angle(rates: list[float]) -> float:
        record = results["rates"] | {"learning_rates": rates}
        curves = [
            one | {"points": [p | {"learning_rate": r} for p, r in zip(one["points"], rates, strict=True)]}
            for one in record["curves"]
        ]
        return figures.rate_curves({"rates": record | {"curves": curves}}).axes[0].get_xticklabels()[0].get_rotation()

    assert angle(RATES) == 0
    assert angle([0.0005, 0.001, 0.0011, 0.004, 0.008]) == 45


def test_all_is_printed_once_and_no_mean_is_over_rates(results):
    text = "\n".join(experiment_text(results))
    assert text.count("by learning rate\n") == 3
    assert "spread over seeds" not in text
    assert "By learning rate: lowdisc+fixedcount, " in text
    assert "clipped at" in runs_table(results).columns
    assert runs_table(results).rows[0][:4] == ("standard", "0.0005", "1", "1")


def test_the_page(tmp_path, results):
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path).read_text()
    assert "LowDisc + FixedCount, unclipped" in page
    assert page.count('<img class="figure') == 1, "the curves over learning rates and no others"
    assert "Loss during training" not in page
    assert "no comparison with Standard is stored" not in page


def test_the_picture_has_a_panel_for_each_way_of_clipping(results):
    figure = figures.rate_curves(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Clipped at 1", "Unclipped"]
    assert figure.axes[0].get_xscale() == "log"
    crosses = [
        [line.get_color() for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]
        for axes in figure.axes
    ]
    assert list(map(len, crosses)) == [0, 2]
    means = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines if line.get_marker() == "o"}
    assert np.isnan(means["Standard"]).tolist() == [False] * 4 + [True]
    arrows = [line.get_marker() for line in figure.axes[0].lines if line.get_marker() in "<>"]
    assert arrows == ["<", ">"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_and_no_clipping_varied(tmp_path, seeds):
    few = made_up((), seeds)
    (figure,) = [figures.rate_curves(few)]
    assert len(figure.axes) == 1
    assert table(few, "Learning rates within").rows[2][3].find(" to ") == -1, "a ratio without an interval"
    (tmp_path / "results.json").write_text(json.dumps(few))
    write_report(tmp_path)


def test_before_any_run_has_finished(tmp_path, results):
    begun = results | {"runs": [], "summary": [], "rates": results["rates"] | {"curves": []}, "advice": []}
    assert figures.rate_curves(begun) is None
    (tmp_path / "results.json").write_text(json.dumps(begun))
    assert "No run has finished yet" in write_report(tmp_path).read_text()
    assert list(experiment_text(begun | {"statements": []}))


def test_a_method_that_always_diverges_is_drawn_as_crosses(results):
    record = json.loads(json.dumps(results["rates"]))
    lost = next(one for one in record["curves"] if one["method"] == "mirror") | {"range": None, "best": None}
    for point in lost["points"]:
        point |= {"mean": None, "lowest": None, "highest": None, "n_diverged": 6}
    drawn = figures.rate_curves({"rates": record | {"curves": [lost]}})
    assert sum(line.get_marker() == "x" and len(line.get_xdata()) > 0 for line in drawn.axes[0].lines) == 5


def test_a_damaged_record_is_refused_by_its_place(tmp_path, results):
    broken = json.loads(json.dumps(results))
    broken["rates"]["curves"][0]["points"][1]["n"] = "six"
    (tmp_path / "results.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"rates\.curves\[0\]\.points\[1\]\.n"):
        write_report(tmp_path)
