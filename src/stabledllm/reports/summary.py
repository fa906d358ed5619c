"""Says the stored results in plain sentences: what is known, what is not, and what came out negative."""

from __future__ import annotations

import math

from stabledllm.reports import numbers as fmt
from stabledllm.reports.labels import COMPONENT_LABELS, LOWER_IS_BETTER, label, metric_name
from stabledllm.reports.saved import saved_sentences
from stabledllm.reports.stored import (
    Stored,
    base_of,
    disagrees,
    finished_planned,
    noise_of,
    number,
    run_methods,
    run_metrics,
    shared_out,
    stderr,
    summary_of,
    value,
)

_NAMES = {"mask_pattern": "which tokens are masked (A)", "mask_rate": "the mask rate (B)", "data": "the data (C)"}


def summarise(stored: Stored) -> list[tuple[str, list[str]]]:
    """The headings of the summary with their sentences, in the order of the questions that users ask."""
    parts = [("What to do", what_to_do(stored))]
    if stored.decomposition:
        parts.append(("Where the noise comes from", components(stored.decomposition)))
        if stored.decomposition.get("methods"):
            parts.append(("What lowers it at equal compute", methods(stored.decomposition)))
    if stored.results:
        parts.append(("Compute saved", saved_sentences(stored.results)))
        parts.append(("What training showed", training(stored.results)))
    return [(heading, sentences) for heading, sentences in parts if sentences]


def what_to_do(stored: Stored) -> list[str]:
    """What the experiment advises, which comes first since it trained, and what the measured noise recommends."""
    out = [sentence for sentence in (stored.results or {}).get("advice") or [] if isinstance(sentence, str)]
    advised = (stored.decomposition or {}).get("recommendation") or {}
    method, quantity = advised.get("method"), advised.get("quantity")
    if method and quantity:
        if advised.get("significant"):
            noise = fmt.with_interval(advised.get("ratio"), advised.get("ci_low"), advised.get("ci_high"))
            out.append(f"By the {quantity}'s noise: switch to {label(method)}, {noise} of Standard's at equal compute.")
        else:
            out.append(
                f"By the {quantity}'s noise: stay with Standard, or measure more rows; no method is surely better."
            )
    return out + [told for fit in stored.fits if (told := _against_fit(stored.decomposition or {}, fit))]


def _against_fit(decomposition: dict, fit: dict) -> str:
    """A sentence on a fitted p(t) of which the fit's held-out rows and the decomposition say different things.

    Each lowers the noise, raises it, or cannot tell; empty where both say the same, or one was not measured. Only of
    P-POTS alone: the fit compares with uniform t under the method's other parts, the decomposition with Standard.
    """
    if fit.get("method") != "ppots":
        return ""
    change = (fit.get("diagnostics") or {}).get("change") or {}
    entries = decomposition.get("methods") or []
    ratio = next((m.get("relative_to_standard") or {} for m in entries if m["method"] == fit.get("method")), {})
    fitted = _side(number(change.get("ci_low")), number(change.get("ci_high")), 0.0)
    measured = _side(number(ratio.get("ci_low")), number(ratio.get("ci_high")), 1.0)
    if not fitted or not measured or fitted == measured:
        return ""
    return (
        f"Of {label(fit['method'])} the fit and the decomposition say different things: by the fit's held-out rows it "
        f"{fitted}, by the decomposition it {measured} ({fmt.ratio(ratio)} of Standard's). Measure both with more rows "
        f"before acting on either."
    )


def _side(low: float, high: float, neutral: float) -> str:
    """What an interval says of a method's noise; empty where there is none."""
    if math.isnan(low + high):
        return ""
    return "lowers the noise" if high < neutral else "raises it" if low > neutral else "cannot be told from uniform t"


def missing(stored: Stored) -> list[tuple[str, str]]:
    """What is not in the folder, with the command that makes it."""
    kind = _kind_of(stored)
    if kind in _OF_RESPONSES:
        measured = (stored.noises, _OF_RESPONSES[kind], f"stabledllm decompose objective.kind={kind}")
        found: tuple = (measured, (stored.results, "an experiment", "stabledllm experiment RECIPE"))
    else:
        found = (
            (stored.decomposition, "where the noise comes from", "stabledllm decompose"),
            (stored.fits, "a fitted p(t)", "stabledllm fit"),
            (stored.results, "an experiment", "stabledllm experiment RECIPE"),
        )
    return [(what, command) for there, what, command in found if not there]


_OF_RESPONSES = {"dpo": "the noise of a step on pairs", "grpo": "the noise of a step on responses"}
"""By the kind of the objective, what is measured in the place of A, B and C."""


def _kind_of(stored: Stored) -> str | None:
    """The kind of the objective that was trained or measured; None where no file says it."""
    objective = base_of(stored.results).get("objective")
    if isinstance(objective, dict) and isinstance(objective.get("kind"), str):
        return objective["kind"]
    return next((noise["objective"] for noise in stored.noises), None)


def components(data: dict) -> list[str]:
    """Sentences on the share of each component, largest first, and on those that cannot be told from zero."""
    out = _shares(data["loss"], "loss")
    if data.get("kind") == "arm":
        out.append("An autoregressive model masks nothing at random, so all of its noise is data noise.")
    if isinstance(data.get("gradient"), dict):
        out += _shares(data["gradient"], "gradient")
        if _largest(data["loss"]) != _largest(data["gradient"]):
            out.append(
                "The loss and the gradient disagree about the largest source; it is the gradient that trains the model."
            )
    return out


def _known_components(parts: dict) -> list[str]:
    return sorted((k for k in COMPONENT_LABELS if not math.isnan(value(parts.get(k)))), key=lambda k: -value(parts[k]))


def _largest(parts: dict) -> str | None:
    return next(iter(_known_components(parts)), None)


def _shares(parts: dict, what: str) -> list[str]:
    known, total = _known_components(parts), shared_out(parts)
    if not known:
        return [f"No component of the {what}'s variance is stored."]
    shares = [f"{_NAMES[k]} {fmt.percent(value(parts[k]), total)} {_bracketed(fmt.positive(parts[k]))}" for k in known]
    out = [f"Of the variance of one row's {what}, {fmt.positive(parts.get('total'), unit=True)}: {_list(shares)}."]
    unclear = [_NAMES[k] for k in known if _may_be_zero(parts[k])]
    if unclear:
        out.append(f"Not told apart from zero: {_list(unclear)}.")
    return out


def _may_be_zero(part: dict) -> bool:
    """Whether a component cannot be told from zero, by its stored interval, else by two errors, if they are known."""
    low, high = number(part.get("ci_low")), number(part.get("ci_high"))
    return not abs(value(part)) >= 2 * stderr(part) if math.isnan(low + high) else low <= 0 <= high


def _bracketed(text: str) -> str:
    return text if text.startswith("(") else f"({text})"


def methods(data: dict) -> list[str]:
    """The sentences of :func:`noise_sentences` for the loss and, where it was measured, for the gradient."""
    out = noise_sentences(data, "loss")
    return out + [f"Gradient. {s}" for s in noise_sentences(data, "gradient")] if noise_of(data, "gradient") else out


def noise_sentences(data: dict, quantity: str) -> list[str]:
    """Sentences on which methods' stored interval excludes 1, on which side, and which have another objective."""
    less, more, unclear, against, unknown = [], [], [], [], []
    by_name = noise_of(data, quantity)
    for m in by_name.values():
        if m["method"] == "standard" or m.get("unbiased") is False:
            continue
        r = m.get("relative_to_standard") or {}
        low, high = number(r.get("ci_low")), number(r.get("ci_high"))
        text = label(m["method"]) + ("" if math.isnan(low + high) else f" ({fmt.ratio(r)})")
        told = less if high < 1 else more if low > 1 else unclear
        group = (
            unknown if math.isnan(low + high) else against if told is not unclear and disagrees(m, by_name) else told
        )
        group.append((number(r.get("value")), text))
    out = []
    for group, words in (
        (less, "Less noise than Standard for the same forward passes, as a multiple of Standard's (interval)"),
        (more, "More noise than Standard"),
        (unclear, "Not told apart from Standard (the interval contains 1)"),
        (against, "Measured and predicted variances disagree, so that nothing is claimed of"),
        (unknown, "Too few draws for an interval of"),
    ):
        if group:
            out.append(f"{words}: {_list([text for _, text in sorted(group)])}.")
    if not less:
        out.insert(0, "No method that keeps the objective is shown to lower the noise at equal compute.")
    biased = [label(m["method"]) for m in data["methods"] if m.get("unbiased") is False]
    if biased and quantity == "loss":
        out.append(f"Another objective, so less noise there is no like-for-like gain: {_list(biased)}.")
    return out


def training(results: dict) -> list[str]:
    """Sentences on progress, then per metric on which methods differ from Standard and from the untuned model."""
    finished, planned = finished_planned(results)
    if not results["runs"]:
        of = f" of {planned}" if planned else ""
        return [f"No run{of} has finished yet."]
    out = []
    if planned and finished < planned:
        out.append(f"{finished} of {planned} runs have finished; what follows may change.")
    for metric in run_metrics(results) if not results.get("rates") else ():  # else at each learning rate, in tables
        out += _metric(results, metric)
    return out + [sentence for sentence in results.get("statements") or [] if isinstance(sentence, str)]


def _metric(results: dict, metric: str) -> list[str]:
    name = metric_name(metric)
    compared = {m: s for m in run_methods(results) if (s := summary_of(results, m, metric)).get("versus_standard")}
    out = []
    if not compared:
        out.append(
            f"In {name}, no comparison with Standard is stored (it takes two seeds of Standard and of another method)."
        )
    else:
        out += _compared(compared, metric, name)
    best = [
        label(m) + ("" if _significant(s["versus_standard"]) else " (its difference from Standard is not significant)")
        for m, s in compared.items()
        if s.get("worst_beats_best_baseline") is True
    ]
    if best:
        out.append(f"In {name}, every run of {_list(best)} beats the best run of every baseline.")
    return out + _against_untuned(results, metric, name)


def _compared(compared: dict[str, dict], metric: str, name: str) -> list[str]:
    lower = LOWER_IS_BETTER.get(metric)
    groups: dict[str, list[str]] = {}
    for method, s in compared.items():
        versus = s["versus_standard"]
        if _significant(versus):
            d = number(versus.get("difference"))
            side = "different from" if lower is None else "better than" if (d < 0) == lower else "worse than"
            groups.setdefault(side, []).append(method)
    seeds = {s.get("n") for s in compared.values()} - {None}
    over = f" over {_list([str(n) for n in sorted(seeds)])} seeds" if seeds else ""
    if not groups:
        return [f"In {name}, no method differs significantly from Standard{over}."]
    out = [
        f"In {name}{over}, {side} Standard: {_list([_difference(m, compared[m], len(group)) for m in group])}."
        for side, group in sorted(groups.items())
    ]
    rest = len(compared) - sum(len(group) for group in groups.values())
    if rest:
        others = "The other method does" if rest == 1 else f"The other {rest} methods do"
        out.append(f"{others} not differ significantly from Standard in {name}.")
    return out


def _difference(method: str, summary: dict, listed: int) -> str:
    """A method's difference from Standard as text; with interval and p value if few methods are listed."""
    versus = summary["versus_standard"]
    d, low, high = (versus.get(k) for k in ("difference", "ci_low", "ci_high"))
    if listed > 4:
        return f"{label(method)} ({fmt.signed(d, 3)})"
    p = versus.get("p_holm", versus.get("p_value"))
    return f"{label(method)} ({fmt.with_interval(d, low, high, sign=True)}, p {_p(p)})"


def _p(p: object) -> str:
    text = fmt.p_value(p)
    return text if text.startswith("<") or text == fmt.NONE else f"= {text}"


def _significant(versus: dict) -> bool:
    """Whether a difference is significant by its stored p value, corrected for the number of methods (below 0.05).

    Where there is no p value, by its interval.
    """
    p = number(versus.get("p_holm", versus.get("p_value")))
    if not math.isnan(p):
        return p < 0.05
    return number(versus.get("ci_low")) > 0 or number(versus.get("ci_high")) < 0


def _against_untuned(results: dict, metric: str, name: str) -> list[str]:
    """A sentence on the methods whose mean is worse than the untuned model's value, if there are any."""
    untuned = ((results.get("untuned") or {}).get("metrics") or {}).get(metric)
    lower = LOWER_IS_BETTER.get(metric)
    if math.isnan(value(untuned)) or lower is None:
        return []
    means = {m: number(summary_of(results, m, metric).get("mean")) for m in run_methods(results)}
    worse = [
        label(m)
        for m, v in means.items()
        if not math.isnan(v) and (v > value(untuned)) == lower and v != value(untuned)
    ]
    if not worse:
        return []
    return [f"In {name}, the mean of {_list(worse)} is worse than the untuned model's {fmt.with_error(untuned)}."]


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""
