"""Every printed table fits the terminal: no line is wider, no word or number is broken, at 60, 80 and 200 columns."""

from __future__ import annotations

import json
import re

import pytest

from stabledllm.experiment.summary import summarise
from stabledllm.reports import numbers, summary
from stabledllm.reports.mask_tables import mask_tables
from stabledllm.reports.printed import decomposition_text, experiment_text, fit_details
from stabledllm.reports.published import published_table
from stabledllm.reports.run_tables import cost_table, runs_table
from stabledllm.reports.stored import noise_of
from stabledllm.reports.table import NONE, Table, filled
from stabledllm.reports.tables import (
    components_table,
    equal_compute_table,
    fit_table,
    gradient_table,
    metrics_table,
    spread_table,
)
from tests.fakes import results as made_up

METHODS = ["standard", "lowdisc+ppots-head+fixedcount", "strats+ppots+mirror", "clipped"]


def experiment(seeds: int = 5) -> dict:
    runs = made_up.results(METHODS, seeds)
    return runs | {
        "summary": summarise(runs["runs"], ["standard"]),
        "statements": ["A long sentence of many words. " * 9],
    }


def tables() -> dict[str, Table]:
    record, results = made_up.decomposition(METHODS), experiment()
    results["config"] = {"base": {"model": "tiny", "data": {"train": "gsm8k"}}}
    return {
        "components": components_table(record),
        "equal compute": equal_compute_table(record),
        "gradient": gradient_table(record),
        "made of": mask_tables(record)[0],
        "least": mask_tables(record)[1],
        "fit": fit_table(made_up.p_of_t("lowdisc+ppots-head+fixedcount")),
        "metrics": metrics_table(results, "validation_nll"),
        "accuracy": metrics_table(results, "accuracy"),
        "spread": spread_table(results, "accuracy"),
        "many seeds": metrics_table(experiment(9), "accuracy"),
        "cost": cost_table(results),
        "runs": runs_table(results),
        "published": published_table(results),
    }


TABLES = tables()


def pieces(text: str) -> list[str]:
    """The words and numbers of a text, a method's parts each by itself."""
    return re.findall(r"[^\s+]+", text)


@pytest.mark.parametrize("wide", [False, True], ids=["first", "wide"])
@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", TABLES)
def test_fits(name, width, wide):
    table = TABLES[name]
    text = table.text(width, wide)
    assert max(map(len, text.splitlines())) <= width
    shown = len(table.columns) if wide or table.answers is None else table.answers
    there = set(pieces(text))
    for row in (table.columns, *table.rows):
        for cell in row[:shown]:
            assert set(pieces(cell)) <= there, f"broken: {cell!r}"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_whole_screens_fit(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    record = made_up.decomposition(METHODS)
    record["notes"] += ["A note of many words, as long as notes are when they explain a figure to its reader. " * 3]
    screens = [decomposition_text(record, wide) for wide in (False, True)]
    screens += [experiment_text(experiment(), wide) for wide in (False, True)]
    screens.append(fit_details(made_up.p_of_t() | {"proxy": {"correlation": 0.9, "excess": 0.01}}))
    for screen in screens:
        text = "\n".join(screen)
        assert len(text) > 100
        assert max(map(len, text.splitlines())) <= width


def test_first_the_columns_that_answer():
    table = TABLES["equal compute"]
    narrow, all_of_it = table.text(60, wide=False), table.text(200, wide=False)
    assert "÷ Standard" in narrow
    assert "pays" in narrow
    assert "mean loss" not in narrow
    assert f"{len(table.columns) - table.answers} more columns with --wide" in " ".join(narrow.split())
    assert "mean loss" in all_of_it
    assert "--wide" not in all_of_it
    assert "mean loss" in table.text(60, wide=True)


def test_a_table_too_wide_for_its_words_is_found():
    """The check has power: a table that is laid out without regard to the width fails it."""
    text = TABLES["equal compute"].text(10_000)
    assert max(map(len, text.splitlines())) > 80


def test_a_sentence_keeps_value_and_error_together():
    lines = filled("Here the value is 0.123456789 ± 0.000012 and that is all of it", 40).splitlines()
    assert len(lines) > 1
    assert any("0.123456789 ± 0.000012" in line for line in lines)


NEGATIVE = {"value": -0.01, "stderr": 0.035, "n": 4, "unit": "nats²"}


def test_no_number_that_cannot_be():
    """Variances are not below 0, nor are ratios, and what pays is claimed only where it is agreed on."""
    record = made_up.decomposition(["standard", "ppots", "mirror"])
    first, other = record["methods"][1:]
    first["variance_at_equal_compute"] = NEGATIVE
    first["relative_to_standard"] = {"value": 0.0, "ci_low": 0.0, "ci_high": 0.039}
    first |= {"pays": None, "agrees_with_prediction": False}
    other["variance_at_equal_compute"] = {"value": 0.2, "stderr": 0.3, "n": 4, "ci_low": -0.1, "ci_high": 1.4}
    rows = {row[0]: row for row in equal_compute_table(record).rows}
    assert rows["ppots"][1:4] == ("below 0.039", "disagree", "below 0.059")
    assert rows["mirror"][3] == "0.20, 0.00 to 1.40"
    record["loss"]["data"] = NEGATIVE
    table = components_table(record)
    assert next(row for row in table.rows if row[0].startswith("C"))[1:3] == ("below 0.059", "0 %")
    for cell in [cell for row in (*table.rows, *rows.values()) for cell in row]:
        assert not re.search(r"(^|\s)-\d", cell.replace("e-", "e")), cell
        assert "nan" not in cell


def test_shares_are_of_what_is_shared_out():
    """Beside a component that is estimated below 0 the others do not make more than 100 %."""
    record = made_up.decomposition([], gradient=False)
    record["loss"] |= {
        "mask_pattern": {"value": 1.2, "stderr": 0.1, "n": 4, "unit": "nats²"},
        "mask_rate": {"value": 0.3, "stderr": 0.1, "n": 4, "unit": "nats²"},
        "data": {"value": -0.5, "stderr": 0.4, "n": 4, "unit": "nats²"},
        "total": {"value": 1.0, "stderr": 0.1, "n": 4, "unit": "nats²"},
    }
    assert [row[2] for row in components_table(record).rows] == ["80 %", "20 %", "0 %", "100 %"]
    assert "which tokens are masked (A) 80 %" in summary.components(record)[0]


def test_a_loss_of_few_rows_is_not_shown_below_zero():
    """Student's interval of two rows reaches below 0, where no loss is; runs are shown with their error, as is said."""
    few = {"value": 0.9, "stderr": 0.33, "n": 2, "unit": "nats/token", "ci_low": -3.3, "ci_high": 5.1}
    record, results = made_up.decomposition(["standard"]), made_up.results(["standard"], 1)
    record["methods"][0]["mean"] = record["loss"]["mean"] = few
    results["runs"][0]["metrics"] = {"validation_nll": few}
    assert equal_compute_table(record).rows[0][-1] == "0.9, 0.0 to 5.1"
    assert "0.9, 0.0 to 5.1" in components_table(record).note
    assert runs_table(results).rows[0][2] == "0.90 ± 0.33"


def test_methods_without_an_interval_are_named_alone():
    record = made_up.decomposition(["standard", "ppots"])
    record["methods"][1]["relative_to_standard"] = {"value": None, "ci_low": None, "ci_high": None}
    assert "Too few draws for an interval of: P-POTS." in summary.noise_sentences(record, "loss")


def test_what_is_said_of_the_gradient_does_not_hang_on_the_losses_prediction():
    record = made_up.decomposition(["standard", "ppots"])
    standard, ppots = record["methods"]
    standard["agrees_with_prediction"] = False
    assert noise_of(record, "gradient")["ppots"]["relative_to_standard"]["ci_high"] < 1, "the test needs a claim"
    of_loss, of_gradient = (" ".join(summary.noise_sentences(record, of)) for of in ("loss", "gradient"))
    assert "nothing is claimed of: P-POTS" in of_loss
    assert "disagree" not in of_gradient
    assert "Less noise than Standard" in of_gradient
    assert ppots["pays"] is not None


def test_unknown_numbers_are_dashes():
    table = equal_compute_table(json.loads(json.dumps(made_up.decomposition(["standard", "ppots"]))))
    assert all(cell for row in table.rows for cell in row)
    empty = {"method": "ppots", "relative_to_standard": {"value": 0.0, "ci_low": None, "ci_high": None}}
    row = equal_compute_table({"methods": [empty]}).rows[0]
    assert set(row[1:]) == {NONE}


def test_footnotes_explain_the_columns_that_are_shown():
    record = made_up.decomposition(METHODS)
    for name in ("equal compute", "gradient"):
        table = TABLES[name]
        narrow, whole = (" ".join(table.text(80, wide=wide).split()) for wide in (False, True))
        assert table.more
        assert table.more.split(".")[0] not in narrow
        assert table.more.split(".")[0] in whole
    assert "Pareto-k" not in " ".join(gradient_table(record).text(80, wide=False).split())


def test_a_ratio_without_an_interval_does_not_look_exact():
    """As of a method of which a few draws decide the variance."""
    nothing = {"ci_low": None, "ci_high": None}
    assert numbers.ratio({"value": 0.593, **nothing}) == "0.593, no interval"
    assert numbers.ratio({"value": None, **nothing}) == numbers.ratio(None) == numbers.NONE
    assert numbers.ratio({"value": 0.6, "ci_low": 0.5, "ci_high": 0.7}) == "0.60, 0.50 to 0.70"


def test_tables_say_where_standards_level_and_its_gradients_come_from():
    """Where the model chooses the masks, Standard's forwards are more than one a row, and counts predict nothing."""
    record = made_up.decomposition(METHODS)
    assert "which is A + B;" in equal_compute_table(record).note
    assert "predicted from exact counts" in gradient_table(record).note
    chosen = made_up.decomposition(METHODS)
    chosen["gradient"] |= {"floor": None, "split": None}
    next(m for m in chosen["methods"] if m["method"] == "standard")["views"] = 1.4
    assert "which is c (A + B) + (c - 1) C" in equal_compute_table(chosen).note
    assert "predicted from Standard's masks" in gradient_table(chosen).note
    assert "measured on drawn steps" in gradient_table(record | {"blocks": {"sentence": "a"}}).note
