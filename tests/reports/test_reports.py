"""The page holds what was stored, whatever was stored, and nothing from elsewhere."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest

import stabledllm.reports
from stabledllm.errors import UserError
from stabledllm.reports import figures, tables
from stabledllm.reports import numbers as fmt
from stabledllm.reports.html import write_report
from stabledllm.reports.labels import label
from stabledllm.reports.mask_tables import mask_tables
from stabledllm.reports.printed import change_in_words, decomposition_text, fit_details
from stabledllm.reports.save import save_decomposition_figures, save_fit_figure
from stabledllm.reports.stored import Stored
from stabledllm.reports.style import colour
from stabledllm.reports.summary import summarise
from stabledllm.reports.table import filled
from tests.fakes import results as made_up
from tests.fakes.results import METHODS, est, put


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def said(results: dict | None = None, decomposition: dict | None = None) -> str:
    found = summarise(Stored(Path("."), decomposition=decomposition, results=results))
    return "\n".join(sentence for _, sentences in found for sentence in sentences)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> str:
    return page(made_up.put_all(tmp_path_factory.mktemp("full")))


def test_full_report_names_every_method_and_section(full):
    for method in METHODS:
        assert label(method) in full
    for section in ("summary", "decomposition", "fits", "methods", "training", "provenance"):
        assert f'id="{section}"' in full
    assert "EPR does not fit these points (made up)." in full
    assert "untuned model" in full
    assert "Every run (60)" in full
    assert "To make it:" not in full


def test_the_page_loads_nothing_from_elsewhere(full):
    assert not re.search(r"<(script|link|iframe|object|embed)\b", full)
    assert "@import" not in full
    assert "url(" not in full
    assert "://" not in full
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in re.findall(r'src="([^"]*)"', full))


def test_nothing_is_left_beside_the_page(tmp_path):
    put(tmp_path, "fit/p_of_t.json", made_up.p_of_t())
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit", "report.html"]


@pytest.mark.parametrize("seeds", [0, 1])
def test_few_runs(tmp_path, seeds):
    put(tmp_path, "results.json", made_up.results(["standard"], seeds, planned=8))
    text = page(tmp_path)
    assert f"{seeds} of 8 runs finished" in text
    if not seeds:
        assert "No run of 8 has finished yet." in text
        assert "stabledllm experiment RECIPE" in text
    assert "stabledllm decompose" in text
    assert "stabledllm fit" in text


def test_runs_without_history_or_summary(tmp_path):
    data = made_up.results(METHODS[:2], 2, history=False) | {"summary": [], "untuned": None}
    put(tmp_path, "experiment/results.json", data)
    assert "No training loss was logged." in page(tmp_path)


def test_an_autoregressive_model_has_only_data_noise(tmp_path):
    data = made_up.decomposition([]) | {
        "kind": "arm",
        "curves": None,
        "gradient": None,
        "by_length": [],
        "mirror": None,
    }
    data["loss"] = {"data": est(0.4, 0.02), "total": est(0.4, 0.02)}
    put(tmp_path, "decomposition.json", data)
    text = page(tmp_path)
    assert "all of its noise is data noise" in text
    assert "No curves are stored" not in text


def test_nulls_everywhere(tmp_path):
    """Every number replaced by null still gives a page."""

    def without_numbers(x, key=None):
        if isinstance(x, dict):
            return {k: without_numbers(v, k) for k, v in x.items()}
        if isinstance(x, list):
            return [without_numbers(v) for v in x]
        keep = key in ("seed", "step", "finished", "planned") or not isinstance(x, int | float)
        return x if keep else None

    put(tmp_path, "decomposition.json", without_numbers(made_up.decomposition(METHODS[:3])))
    put(tmp_path, "p_of_t.json", without_numbers(made_up.p_of_t()))
    put(tmp_path, "results.json", without_numbers(made_up.results(METHODS[:3], 2)))
    text = page(tmp_path)
    assert not re.search(r"\bnan\b", re.sub(r'src="[^"]*"', "", text).lower())


def test_optional_parts_may_be_missing(tmp_path):
    put(tmp_path, "decomposition.json", {"schema": "stabledllm/decomposition/1", "loss": {}})
    empty = {"schema": "stabledllm/p_of_t/1", "method": "ppots", "density": [], "diagnostics": {}, "profile": {}}
    put(tmp_path, "p_of_t.json", empty)
    run = {"method": "mirror", "seed": 0}
    put(tmp_path, "results.json", {"schema": "stabledllm/results/1", "runs": [run], "summary": []})
    assert "MIRROR" in page(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("decomposition.json", "{", "expected JSON"),
        ("results.json", "[]", "expected schema 'stabledllm/results/1', found 'list'"),
        ("p_of_t.json", '{"schema": "stabledllm/p_of_t/2"}', "found 'stabledllm/p_of_t/2'"),
        ("decomposition.json", '{"schema": "stabledllm/decomposition/1"}', "expected 'loss'"),
        ("results.json", '{"schema": "stabledllm/results/1", "runs": [{}], "summary": []}', r"'runs\[0\].method'"),
        (
            "results.json",
            '{"schema": "stabledllm/results/1", "summary": [], "runs": [{"method": "x", "seed": 0, "history": [{}]}]}',
            r"expected 'runs\[0\].history\[0\].step' to be a number, found None",
        ),
        (
            "decomposition.json",
            '{"schema": "stabledllm/decomposition/1", "loss": {}, "notes": "x"}',
            "'notes' to be a list",
        ),
    ],
)
def test_broken_files_are_named(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        write_report(tmp_path)
    assert str(tmp_path / name) in str(error.value)
    assert not (tmp_path / "report.html").exists()


def places(x, at=()):
    """Every place in stored JSON; of a list its first item, of an estimate its value and unit."""
    yield at
    items = x.items() if isinstance(x, dict) else enumerate(x[:1]) if isinstance(x, list) else ()
    if isinstance(x, dict) and x.keys() == est(None).keys():
        items = [(key, x[key]) for key in ("value", "unit")]
    for key, value in items:
        yield from places(value, (*at, key))


class Reading(dict):
    """Stored results that note which of their entries are read."""

    def __init__(self, data: dict):
        super().__init__(data)
        self.entries: set[str] = set()

    def __getitem__(self, key: str):
        self.entries.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: str) -> bool:
        self.entries.add(key)
        return super().__contains__(key)

    def get(self, key: str, default=None):
        self.entries.add(key)
        return super().get(key, default)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decomposition", "p_of_t", "results"])
@pytest.mark.parametrize("value", [None, "x", {}], ids=repr)
def test_any_value_replaced_is_shown_or_refused(tmp_path, monkeypatch, kind, value):
    """Whatever one value of a file is replaced by: a page, or a sentence that names the file."""
    monkeypatch.setattr("stabledllm.reports.html.data_uri", lambda figure: None)
    good = {
        "decomposition": lambda: made_up.decomposition(["standard", "ppots"], gradient=False),
        "p_of_t": made_up.p_of_t,
        "results": lambda: made_up.results(["standard", "mirror"], 2),
    }[kind]()

    # Figures are slow: drawn for null, which is a legal value, in an entry that they read; tables and words for all.
    def where_it_is_read(draw: Callable) -> Callable:
        @functools.cache
        def read(*rest: str) -> set[str]:
            draw(reading := Reading(good), *rest)
            return reading.entries

        return lambda data, *rest: draw(data, *rest) if value is None and at[0] in read(*rest) else None

    for name in figures.__all__:
        monkeypatch.setattr(figures, name, where_it_is_read(getattr(figures, name)))
    text = json.dumps(good)
    for at in list(places(good))[1:]:
        data = json.loads(text)
        inner = data
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = value
        path = put(tmp_path, f"{kind}.json", data)
        try:
            outcome = page(tmp_path)
        except UserError as error:
            outcome = str(error)
        assert "<html" in outcome or str(path) in outcome


def test_the_measured_points_are_drawn():
    axes = figures.fit(made_up.p_of_t()).axes[0]
    assert "√(second moment / cost), measured" in axes.get_legend_handles_labels()[1]
    without = made_up.p_of_t()
    del without["profile"]["target"]
    assert len(figures.fit(without).axes[0].containers) == len(axes.containers) - 1


def test_a_density_whose_lengths_differ_is_not_drawn():
    data = made_up.decomposition(["standard", "ppots"])
    data["densities"][0]["t"].pop()
    assert figures.densities(data) is None


def test_runs_are_counted_where_the_status_does_not_say(tmp_path):
    put(tmp_path, "results.json", made_up.results(METHODS[:2], 2) | {"status": {"finished": None, "planned": 6}})
    assert "4 of 6 runs finished" in page(tmp_path)


def test_an_untuned_model_off_the_axis_is_not_in_the_legend():
    data = made_up.results(["standard", "ppots"], 3)
    data["untuned"]["metrics"] = {"validation_nll": est(90.0, 1.0)}
    legend = [text.get_text() for text in figures.final_metrics(data).legends[0].get_texts()]
    assert "one seed" in legend
    assert "untuned model" not in legend


def test_a_lucky_win_is_told_as_one():
    data = made_up.results(["standard", "mirror"], 2)
    for s in data["summary"]:
        if s["versus_standard"]:
            s["versus_standard"]["p_value"] = 0.48
            s["worst_beats_best_baseline"] = True
    assert "every run of MIRROR (its difference from Standard is not significant) beats" in said(data)


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(UserError, match="found none of them"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="found nothing"):
        write_report(tmp_path / "missing")


def test_stored_text_is_escaped(tmp_path):
    bad = "<script>alert(1)</script>"
    data = made_up.decomposition(["standard", f"ppots+{bad}"]) | {"model": bad, "notes": [bad], "config": {bad: bad}}
    data["mirror"] = {"sentence": bad}
    put(tmp_path, "decomposition.json", data)
    put(tmp_path, "p_of_t.json", made_up.p_of_t(fallback=bad))
    text = page(tmp_path)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_summary_says_which_intervals_exclude_one():
    text = said(decomposition=made_up.decomposition(["standard", "ppots", "strats", "clipped"]))
    assert "Less noise than Standard for the same forward passes" in text
    assert "P-POTS (0.630, 0.567 to 0.693)" in text
    assert "Another objective" in text
    assert "Clipped" in text.split("Another objective")[1]


def test_summary_tells_negative_results():
    data = made_up.results(["standard", "ppots", "mirror"], 3)
    for s in data["summary"]:
        s["worst_beats_best_baseline"] = False
        if s["versus_standard"]:
            s["versus_standard"]["p_value"] = 0.3
    text = said(data)
    assert "In validation NLL, no method differs significantly from Standard over 3 seeds." in text
    assert "In accuracy, no method differs significantly from Standard over 3 seeds." in text
    data["untuned"]["metrics"]["accuracy"] = est(0.9, 0.01, unit="")
    assert "is worse than the untuned model's 0.900 ± 0.010" in said(data)


def test_summary_knows_which_way_is_better():
    data = made_up.results(["standard", "ppots"], 3)
    versus = {"difference": -0.1, "ci_low": -0.15, "ci_high": -0.05, "p_value": 0.01}
    for s in data["summary"]:
        s["versus_standard"] = versus if s["method"] == "ppots" else None
    text = said(data)
    assert "In validation NLL over 3 seeds, better than Standard: P-POTS" in text
    assert "In accuracy over 3 seeds, worse than Standard: P-POTS" in text


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (est(0.48812, 0.0183), "0.488 ± 0.018"),
        (est(12.3456, 1.2), "12.3 ± 1.2"),
        (est(-0.03, 0.2), "-0.03 ± 0.20"),
        (est(3.1e-7, 2.2e-8), "(3.10 ± 0.22)e-07"),
        (est(0.5, None), "0.500 ± ?"),
        (est(None, None), "–"),
        (est(15234, 300), "15234 ± 300"),
        (None, "–"),
        (est(21.0, 12.0) | {"ci_low": 8.0, "ci_high": 156.0}, "21, 8 to 156"),
        (est(2.1, 7e3) | {"ci_low": 0.02, "ci_high": 7.6e6}, "2.10, 0.0200 to 7.60e+06"),
        (est(3.1e-9, 7e-9) | {"ci_low": 1.2e-9, "ci_high": 4e-5}, "3.10e-09, 1.20e-09 to 4.00e-05"),
    ],
)
def test_estimates_have_sensible_digits(stored, text):
    assert fmt.estimate(stored) == text


def test_tables_print_aligned():
    text = tables.metrics_table(made_up.results(METHODS, 5), "validation_nll").text()
    lines = text.splitlines()
    assert lines[0] == "Validation NLL (nats per token)"
    assert all(any(line.startswith(m) for line in lines) for m in METHODS)
    assert "41 %" in str(tables.components_table(made_up.decomposition()))


def test_figures_are_saved_as_png(tmp_path):
    before = dict(matplotlib.rcParams)
    paths = save_decomposition_figures(made_up.decomposition(METHODS[:3]), tmp_path / "figures")
    paths.append(save_fit_figure(made_up.p_of_t(), tmp_path / "fit.png"))
    names = ["curves.png", "decomposition.png", "densities.png", "equal_compute.png"]
    names += ["equal_compute_gradient.png", "fit.png"]
    assert sorted(p.name for p in paths) == names
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
    assert dict(matplotlib.rcParams) == before


def test_negative_components_are_drawn_below_zero():
    data = made_up.decomposition([], gradient=False) | {"by_length": []}
    data["loss"]["data"] = est(-0.2, 0.1)
    axes = figures.components(data).axes[0]
    assert [bar.get_height() for bar in axes.patches][-1] == pytest.approx(-0.2)
    assert axes.get_ylim()[0] < -0.2


def test_the_usual_methods_have_their_own_colours():
    assert len({colour(m) for m in METHODS}) == len(METHODS)


def test_the_same_results_give_the_same_page(tmp_path):
    put(tmp_path, "p_of_t.json", made_up.p_of_t())
    assert page(tmp_path) == page(tmp_path)


_OURS = ("stabledllm.errors", "stabledllm.plain_text", "stabledllm.runtime.files", "stabledllm.runtime.locks")
_OURS += ("stabledllm.runtime.secrets",)
"""What reports share with the rest: how text is shown and how files are written, which knows no torch."""


def test_reports_import_no_torch_and_little_of_ours():
    folder = Path(stabledllm.reports.__file__).parent
    allowed = {"json", "matplotlib", "jinja2", "markupsafe", "numpy", "PIL"} | set(
        __import__("sys").stdlib_module_names
    )
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, path
                names = [node.module]
            for name in names:
                ours = name in _OURS or name.startswith("stabledllm.reports")
                assert ours or name.split(".")[0] in allowed, f"{path.name} imports {name}"
                assert name != "matplotlib.pyplot", path.name


def test_json_of_the_helper_is_json():
    json.dumps(made_up.decomposition(), allow_nan=False)


def test_the_gradients_noise_stands_beside_the_losses(tmp_path):
    from stabledllm.reports import tables

    data = made_up.decomposition(["standard", "mirror", "clipped"])
    text = tables.gradient_table(data).text()
    assert "0.91" not in text.splitlines()[3], "Standard's ratio is 1 by definition"
    mirror = next(line for line in text.splitlines() if line.startswith("mirror"))
    # 401 rows of two views each are 802 forward passes.
    assert "0.92" in mirror
    assert "0.82" in mirror
    assert "802" in mirror
    assert tables.gradient_table(made_up.decomposition(["standard"], gradient=False)).rows == ()
    (tmp_path / "decomposition.json").write_text(json.dumps(data), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Of the gradient" in page
    assert "made up" in page
    assert "method: strats" in page


def test_what_a_of_the_gradient_is_made_of_is_in_the_page_and_printed(tmp_path):
    data = made_up.decomposition(["standard"])
    made, least = mask_tables(data)
    assert [row[0] for row in made.rows] == [
        "how many tokens are masked", "which tokens are targets", "which context they see",
    ]  # fmt: skip
    assert made.rows[1][1:] == ("(1.80 ± 0.10)e-06", "0.581 ± 0.040")
    assert least.rows[1] == ("balanced views of a row", "0.210 ± 0.030")
    assert str(least) in "\n".join(decomposition_text(data))
    (tmp_path / "decomposition.json").write_text(json.dumps(data), encoding="utf-8")
    shown = page(tmp_path)
    assert made.title in shown
    assert least.title in shown
    data["gradient"]["split"]["share_of_targets"] |= {"stderr": None}
    assert mask_tables(data)[0].rows[1][2] == "0.581 ± ?", "it is not exact"
    del data["gradient"]["split"]
    assert mask_tables(data) == []
    data["gradient"]["split"] = {"targets": 0.5}
    (tmp_path / "decomposition.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match=r"gradient\.split\.targets"):
        write_report(tmp_path)


def test_a_fit_to_gradient_norms_draws_the_norms():
    data = made_up.p_of_t("ppots-head") | {"signal": "output layer"}
    data["profile"] |= {"g": None, "v": None, "v_views": None, "rho": None}
    drawn = figures.fit(data).axes[1].get_legend().get_texts()
    assert [t.get_text() for t in drawn] == ["E|output layer's gradient|²"]
    plain = figures.fit(made_up.p_of_t()).axes[1].get_legend().get_texts()
    assert not any("gradient" in t.get_text() for t in plain)


def test_secrets_and_control_characters_are_not_in_the_page(tmp_path):
    data = made_up.decomposition() | {"model": "tiny\x1b]0;title\x07\u202e<script>"}
    data["config"] = {"hub_token": "hf_verysecret", "address": "https://me:word@host/x", "end_token": "<eot>"}
    put(tmp_path, "decomposition.json", data)
    text = page(tmp_path)
    assert "verysecret" not in text
    assert "me:word" not in text
    assert "https://(hidden)@host/x" in text
    assert "&lt;eot&gt;" in text
    assert not set("\x1b\x07\u202e") & set(text)
    assert "\\x1b]0;title\\x07\\u202e&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("fit", "ratio", "words"),
    [
        ((-0.3, -0.4, -0.2), (0.8, 0.7, 0.9), None),
        ((-0.3, -0.4, 0.2), (0.8, 0.7, 1.9), None),
        (
            (-0.3, -0.4, -0.2),
            (0.9, 0.7, 1.2),
            "lowers the noise, by the decomposition it cannot be told",
        ),
        (
            (-0.1, -0.4, 0.2),
            (0.8, 0.7, 0.9),
            "cannot be told from uniform t, by the decomposition it lowers",
        ),
        ((-0.3, -0.4, -0.2), (1.2, 1.1, 1.3), "it lowers the noise, by the decomposition it raises it"),
    ],
)
def test_a_fit_and_a_decomposition_that_say_different_things_are_told(fit, ratio, words):
    decomposition, record = made_up.decomposition(METHODS), made_up.p_of_t("ppots")
    names = ("value", "ci_low", "ci_high")
    record["diagnostics"]["change"] = dict(zip(names, fit, strict=True))
    entry = next(m for m in decomposition["methods"] if m["method"] == "ppots")
    entry["relative_to_standard"] = dict(zip(names, ratio, strict=True))
    found = summarise(Stored(Path("."), decomposition=decomposition, fits=[record]))
    told = [one for one in dict(found).get("What to do", []) if "say different things" in one]
    assert bool(told) == (words is not None)
    if words:
        assert words in told[0]
        assert "Measure both with more rows" in told[0]


@pytest.mark.parametrize("method", ["ppots+mirror", "ppots-gradient"])
def test_a_better_density_under_views_that_do_not_pay_is_no_contradiction(method):
    """The fit compares p(t) with uniform t under the same views, the decomposition both with Standard."""
    decomposition, record = made_up.decomposition(["standard", "ppots", method]), made_up.p_of_t(method)
    record["diagnostics"]["change"] = {"value": -0.3, "ci_low": -0.4, "ci_high": -0.2}
    entry = next(m for m in decomposition["methods"] if m["method"] == method)
    entry["relative_to_standard"] = {"value": 1.2, "ci_low": 1.1, "ci_high": 1.3}
    found = summarise(Stored(Path("."), decomposition=decomposition, fits=[record]))
    assert not [one for one in dict(found).get("What to do", []) if "say different things" in one]


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((-0.36, -0.48, -0.24), "p(t) has 0.70 (0.60 to 0.80) of uniform t's variance: it lowers it."),
        ((0.36, 0.24, 0.48), "of uniform t's variance: uniform t is better."),
        ((-0.1, -0.4, 0.2), "24 probed rows do not tell whether it helps; probe more (ppots.rows)."),
        ((-0.1, -4.0, 3.8), "0.0 to 4.2) of uniform t's variance"),
        ((-0.1, None, None), ""),
    ],
)
def test_a_fit_says_whether_its_rows_tell(ends, words):
    record = made_up.p_of_t()
    record["diagnostics"]["change"] = dict(zip(("value", "ci_low", "ci_high"), ends, strict=True)) | {"n": 24}
    told = change_in_words(record)
    assert not told or list(fit_details(record))[-1] == filled(told), "docs/measuring.md: the last line"
    assert words in told
    assert bool(told) == bool(words)


def test_the_outlier_steps_of_an_experiments_runs(tmp_path):
    put(tmp_path, "results.json", made_up.results(["standard"], 2))
    folder = tmp_path / "runs" / "standard" / "seed-1"
    spikes = [{"step": step, "grad_norm": float(step), "median": 2.0, "loss": 1.5} for step in range(20, 50)]
    folder.mkdir(parents=True)
    (folder / "spikes.jsonl").write_text("".join(json.dumps(spike) + "\n" for spike in spikes) + '{"step": 7')
    record = {"schema": "stabledllm/replay/1", "step": 49, "cause": "draw", "sentence": "88 % of it is <one> row."}
    put(tmp_path, "runs/standard/seed-1/replays/step-49.json", record)
    text = page(tmp_path)
    assert "Runs/standard/seed-1: 30 steps have a gradient norm far above" in text
    assert "runs/standard/seed-1: 88\u00a0% of it is &lt;one&gt; row." in text
    assert "The 20 largest; 10 more are in spikes.jsonl." in text
    assert "<td>draw</td>" in text
    assert "--step 48</td>" in text
    assert "--step 29</td>" not in text


def test_a_broken_record_of_a_replayed_step_is_refused(tmp_path):
    put(tmp_path, "replays/step-3.json", {"schema": "stabledllm/replay/1", "step": 3})
    with pytest.raises(UserError, match=r"step-3\.json: .*sentence"):
        write_report(tmp_path)
