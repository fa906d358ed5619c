"""Tables of stored results, in one structure that is printed in a terminal or set in HTML."""

from __future__ import annotations

import math
from collections.abc import Callable

from stabledllm.reports import numbers as fmt
from stabledllm.reports.labels import COMPONENT_LABELS, metric_label
from stabledllm.reports.stored import (
    disagrees,
    diverged_at,
    noise_of,
    number,
    run_methods,
    shared_out,
    standard_first,
    stderr,
    summary_of,
    value,
)
from stabledllm.reports.table import Table

Name = Callable[[str], str]


def components_table(data: dict) -> Table:
    """The table of A, B, C and the total with their shares of it; the gradient's beside the loss's where stored."""
    parts = [("loss", data["loss"])]
    if isinstance(data.get("gradient"), dict):
        parts.append(("gradient", data["gradient"]))
    columns = [c for name, p in parts for c in (f"{name}, {_unit(p)}", "share")]
    rows = []
    for key in (*COMPONENT_LABELS, "total"):
        cells = [c for _, p in parts for c in _cells(p, key)]
        if any(c != fmt.NONE for c in cells):
            rows.append((COMPONENT_LABELS.get(key, "total"), *cells))
    mean = fmt.positive(data["loss"].get("mean"), unit=True)
    note = f"Mean loss {mean}. Value ± standard error, or with its 95 % interval; below X: the estimate is not above 0."
    return Table("Where the variance of one row comes from", ("component", *columns), tuple(rows), note)


def _cells(parts: dict, key: str) -> tuple[str, str]:
    whole = value(parts.get("total")) if key == "total" else shared_out(parts)
    return fmt.positive(parts.get(key)), fmt.percent(value(parts.get(key)), whole)


def _unit(parts: dict) -> str:
    return next((p["unit"] for p in parts.values() if isinstance(p, dict) and "²" in (p.get("unit") or "")), "nats²")


def equal_compute_table(data: dict, name: Name = str) -> Table:
    """The table of methods: their noise at equal compute over Standard's, whether they pay, and the variances of it."""
    by_name = noise_of(data, "loss")
    rows = []
    for key in standard_first(list(by_name)):
        m = by_name[key]
        rows.append(
            (
                name(key),
                "1" if key == "standard" else fmt.ratio(m.get("relative_to_standard")),
                _pays(m, by_name),
                fmt.positive(m.get("variance_at_equal_compute")),
                fmt.positive(m.get("predicted_at_equal_compute")),
                *_kind(m),
                fmt.positive(m.get("measured_variance")),
                fmt.positive(m.get("predicted_variance")),
                fmt.positive(m.get("mean")),
            )
        )
    columns = (
        "method", "÷ Standard", "pays", "at equal compute", "predicted", "unbiased", "views", "variance",
        "variance, predicted", "mean loss",
    )  # fmt: skip
    used = {row[2] for row in rows}
    cost = number((by_name.get("standard") or {}).get("views"))
    level = "c (A + B) + (c - 1) C for its c forward passes a row" if cost > 1 else "A + B"
    note = (
        "÷ Standard: the noise at equal compute, that is for the same number of forward passes, over Standard's, which "
        f"is {level}; with its 95 % interval. – : not known from so few draws. At equal compute: the noise in nats²."
    )
    more = "Predicted: the same from A, B and C. Variance: of one row's loss, in nats²."
    note += " Biased: the method trains another objective." * (BIASED in used)
    note += " Disagree: measured and predicted variances do, so that nothing is claimed." * (DISAGREE in used)
    return Table("Noise of each method", columns, tuple(rows), note, more, answers=3)


BIASED, DISAGREE = "biased", "disagree"


def _pays(entry: dict, by_name: dict[str, dict]) -> str:
    if entry.get("unbiased") is False:
        return BIASED
    if disagrees(entry, by_name) and entry["method"] != "standard":
        return DISAGREE
    return fmt.yes_no(entry.get("pays"))


def _kind(entry: dict) -> tuple[str, str]:
    """Whether a method is unbiased, and its views."""
    unbiased = "no (biased)" if entry.get("unbiased") is False else fmt.yes_no(entry.get("unbiased"))
    return unbiased, fmt.NONE if math.isnan(number(entry.get("views"))) else f"{number(entry['views']):.3g}"


def gradient_table(data: dict, name: Name = str) -> Table:
    """The table of the methods' gradient noise at equal compute (raw, clipped, as Adam's update) and noise scales."""
    by_name = noise_of(data, "gradient")
    rows = []
    for key in standard_first(list(by_name)):
        m, own = by_name[key], key == "standard"
        scale = value(m.get("noise_scale")) * number(m.get("views"))
        rows.append(
            (
                name(key),
                "1" if own else fmt.ratio(m.get("relative_to_standard")),
                fmt.positive(m.get("variance_at_equal_compute")),
                *("1" if own else _ratio(m.get(kind)) for kind in ("clipped", "update")),
                fmt.plain(scale) if scale > 0 else fmt.NONE,
                fmt.plain(m.get("pareto_k")),
                _kind(m)[0],
                fmt.positive(m.get("predicted_variance")),
                fmt.positive(m.get("measured_variance")),
            )
        )
    columns = (
        "method", "÷ Standard", "at equal compute", "clipped", "update", "noise scale", "Pareto-k", "unbiased",
        "variance", "measured",
    )  # fmt: skip
    note = (
        f"÷ Standard: the gradient's noise at equal compute over Standard's, with its 95 % interval. At equal compute: "
        f"the trace of its covariance in (nats/param)², {gradient_from(data)}."
    )
    more = (
        "Clipped, update: noise over signal of drawn steps of equal compute, of the clipped gradient and of Adam's "
        "update, over Standard's. Noise scale: in forward passes. Pareto-k above 0.7: the tail is too heavy for the "
        "errors to be trusted. Variance and measured: the trace for one row's gradient, predicted and from drawn steps."
    )
    return Table("Gradient noise of each method", columns, tuple(rows), note, more, answers=2)


def gradient_from(data: dict) -> str:
    """What the gradient's noise of a decomposition comes from, in words.

    >>> gradient_from({"gradient": {"floor": None}})  # as under LIFT and GIFT
    "predicted from Standard's masks, or from a method's own where these are not independent"
    """
    if data.get("blocks"):
        return "measured on drawn steps"
    if (data.get("gradient") or {}).get("floor", ...) is None:
        return "predicted from Standard's masks, or from a method's own where these are not independent"
    return "predicted from exact counts"


def _ratio(part: dict | None) -> str:
    return fmt.plain(((part or {}).get("relative_to_standard") or {}).get("value"))


DIVERGED = "diverged"
_SEEDS = 6
"""Most seeds whose values fit on a page beside the statistics of them."""


def metrics_table(results: dict, metric: str, name: Name = str) -> Table:
    """The table of methods x seeds for one metric, with the stored summary, and the untuned model in the last row.

    With more than :data:`_SEEDS` seeds their number replaces their values, which the table of all runs holds.
    """
    seeds = sorted({r["seed"] for r in results["runs"]}, key=str if _mixed(results) else None)
    seeds = seeds if len(seeds) <= _SEEDS else []
    places = _decimals(results, metric)
    rows = [_metric_row(results, method, metric, seeds, places, name) for method in run_methods(results)]
    untuned = ((results.get("untuned") or {}).get("metrics") or {}).get(metric)
    if not math.isnan(value(untuned)):
        error = fmt.NONE if math.isnan(stderr(untuned)) else f"± {stderr(untuned):.{places}f} (se)"
        cells = (fmt.fixed(value(untuned), places), "", "", "", error, "", "")
        rows.append(("untuned model", *cells, *[""] * (len(seeds) or 1)))
    columns = (
        "method", "mean", "vs Standard", "p (Holm)", "sd", "interval of mean", "p", "worst beats best baseline",
        *([f"seed {s}" for s in seeds] or ["seeds"]),
    )  # fmt: skip
    if not results["summary"]:
        return Table(metric_label(metric), columns, tuple(rows), answers=4)
    note = (
        "vs Standard: the difference of means, with its 95 % interval. p (Holm): corrected for the number of methods."
    )
    note += " Diverged runs are in no figure." * any(diverged_at(run) is not None for run in results["runs"])
    more = (
        "Worst beats best baseline: the method's worst run is better than the best run of every baseline; no run that "
        "diverged is."
    )
    return Table(metric_label(metric), columns, tuple(rows), note, more, answers=4)


def spread_table(results: dict, metric: str, name: Name = str) -> Table | None:
    """The table of each method's sd over seeds, with its interval and its ratio to Standard's; None below 2 seeds."""
    places, rows = _decimals(results, metric) + 1, []
    for method in run_methods(results):
        s = summary_of(results, method, metric)
        if math.isnan(number(s.get("sd"))):
            continue
        ratio = s.get("sd_versus_standard") or {}
        rows.append(
            (
                name(method),
                fmt.count(s.get("n")),
                fmt.fixed(number(s["sd"]), places),
                fmt.interval(s.get("sd_ci_low"), s.get("sd_ci_high"), places),
                fmt.ratio(ratio),
            )
        )
    if not rows:
        return None
    columns = ("method", "seeds", "sd", "interval of sd", "÷ Standard's sd")
    note = "95 % intervals: chi-square for an sd, Pitman-Morgan over common seeds for a ratio."
    return Table(f"{metric_label(metric)}: spread over seeds", columns, tuple(rows), note)


def _mixed(results: dict) -> bool:
    return not all(isinstance(r["seed"], int) for r in results["runs"])


def _metric_row(results: dict, method: str, metric: str, seeds: list, places: int, name: Name) -> tuple[str, ...]:
    mine = [r for r in results["runs"] if r["method"] == method]
    runs = {r["seed"]: value((r.get("metrics") or {}).get(metric)) for r in mine}
    lost = {r["seed"] for r in mine if diverged_at(r) is not None}
    s = summary_of(results, method, metric)
    versus = s.get("versus_standard") or {}

    def at(v: object) -> str:
        return fmt.NONE if math.isnan(number(v)) else f"{number(v):.{places}f}"

    low, high = (_possible(number(s.get(end)), metric) for end in ("ci_low", "ci_high"))
    shift = (number(versus.get(key)) for key in ("difference", "ci_low", "ci_high"))
    return (
        name(method),
        at(s.get("mean")),
        _shift(*shift, places),
        fmt.p_value(versus.get("p_holm")),
        at(s.get("sd")),
        fmt.interval(low, high, places),
        fmt.p_value(versus.get("p_value")),
        fmt.yes_no(s.get("worst_beats_best_baseline")),
        *([DIVERGED if seed in lost else at(runs.get(seed)) for seed in seeds] or [seeds_of(len(runs), len(lost))]),
    )


_SHARE, _ANY = (0.0, 1.0), (-math.inf, math.inf)
_RANGES = {"accuracy": _SHARE, "preference_accuracy": _SHARE}
_RANGES |= dict.fromkeys(("clip_score", "preference_margin", "reward"), _ANY)


def _possible(end: float, metric: str) -> float:
    """An interval's end, moved to where the metric can be: no loss is negative, and no share above 1."""
    low, high = _RANGES.get(metric, (0.0, math.inf))
    return end if math.isnan(end) else min(max(end, low), high)


def _shift(difference: float, low: float, high: float, places: int) -> str:
    """A difference with its interval, ``+0.012, -0.003 to 0.027``; alone where there is none."""
    span = fmt.interval(low, high, places)
    return fmt.signed(difference, places) + (f", {span}" if span != fmt.NONE else "")


def seeds_of(seeds: int, lost: int) -> str:
    """The number of seeds, with how many of them diverged, as text: ``20`` or ``20 (2 diverged)``."""
    return f"{seeds} ({lost} {DIVERGED})" if lost else str(seeds)


def _decimals(results: dict, metric: str) -> int:
    """The number of decimals for a metric: 3, or 4 where the runs lie within 0.02 of each other."""
    values = [value((r.get("metrics") or {}).get(metric)) for r in results["runs"]]
    values = [v for v in values if not math.isnan(v)]
    return 4 if len(values) > 1 and max(values) - min(values) < 0.02 else 3


def fit_table(data: dict) -> Table:
    """The table on how good a fitted p(t) is, with one diagnostic per row and what it means."""
    d = data["diagnostics"]
    threshold = number(d.get("kl_threshold"))
    limit = "" if math.isnan(threshold) else f"; above {fmt.plain(threshold)} p is tabulated instead"
    parameters = data.get("parameters") or {}
    rows = [
        ("form in use", str(data.get("kind", fmt.NONE)), "epr: the parametric curve; tabulated: the smoothed points"),
        ("KL from the points", fmt.plain(d.get("kl")), f"nats{limit}"),
        ("relative effective sample size", fmt.plain(d.get("relative_ess")), "1: all weights equal"),
        (
            "Pareto-k of the weighted loss",
            fmt.plain(d.get("pareto_k")),
            "above 0.7: the tail is too heavy to trust a variance",
        ),
        ("variance with uniform t", fmt.positive(d.get("variance_uniform")), "nats²"),
        ("variance with this p(t)", fmt.positive(d.get("variance_fitted")), "nats², on rows that it was not fitted on"),
        ("uniform share", fmt.plain(data.get("uniform_share")), "mixed in, bounds every weight by its reciprocal"),
        ("forward passes of the probe", fmt.count(data.get("forward_passes")), "spent once"),
    ]
    if any(v is not None for v in parameters.values()):
        text = ", ".join(f"{k} = {fmt.plain(v)}" for k, v in parameters.items())
        rows.append(("parameters", text, "√(a tʳ + b (1−t)^q + A² exp(2κ tᵐ))"))
    return Table(f"Fit for {data['method']}", ("diagnostic", "value", "meaning"), tuple(rows))
