"""Says over which learning rates each method stays near its best, and which one does over the widest range."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.experiment.rate_range import LEAST_SEEDS
from stabledllm.experiment.rates import EXACT, LEAST, MOST, UNKNOWN
from stabledllm.experiment.summary import diverged_share
from stabledllm.reports.labels import clipping, exact, metric_name


def rate_statements(record: dict, runs: Sequence[dict]) -> list[str]:
    """A sentence on the range of each curve, then on too few rates or seeds and on the runs that diverged."""
    out = [_range(curve, record) for curve in record["curves"] if curve["seeds"]]
    if len(record["learning_rates"]) == 1:
        out.append("One learning rate shows no range; give several, a factor of 2 apart.")
    fewest = min((curve["seeds"] for curve in record["curves"]), default=0)
    if 0 < fewest < LEAST_SEEDS:
        out.append(f"Ranges have an interval from {LEAST_SEEDS} seeds on; some methods have {fewest} at every rate.")
    return out + _diverged(runs)


def rate_advice(record: dict) -> list[str]:
    """Which method's range is wider than Standard's beyond its interval, and where the grid is too narrow to tell."""
    out = []
    compared = [curve for curve in record["curves"] if curve["versus_standard"]]
    wider = [curve for curve in compared if (curve["versus_standard"]["ratio"]["ci_low"] or 0) > 1]
    if wider:
        best = max(wider, key=lambda curve: curve["versus_standard"]["ratio"]["ci_low"])
        out.append(
            f"By learning rate: {_name(best)} stays near its best over a range {_versus(best['versus_standard'])}."
        )
    elif any(curve["versus_standard"]["ratio"]["ci_high"] for curve in compared):
        out.append("By learning rate: no method's range is shown to be wider than Standard's.")
    elif compared:
        out.append(
            "By learning rate: no range is told from Standard's; that takes a grid that goes beyond both ends of them, "
            f"and {LEAST_SEEDS} seeds or more."
        )
    known = [curve for curve in record["curves"] if curve["best"] and len(record["learning_rates"]) > 1]
    if ends := [_name(curve) for curve in known if curve["best"]["is_at_end"]]:
        out.append(f"Widen learning_rates: the best rate of {_list(ends)} is at an end of the grid.")
    if coarse := [_name(c) for c in known if c["range"]["rates"] == 1 and not c["best"]["is_at_end"]]:
        out.append(
            f"Give learning_rates closer together: only the best one is within {_percent(record['within'])}, so that "
            f"the range is read off straight lines to its neighbours and comes out too narrow ({_list(coarse)})."
        )
    return out


def _list(names: Sequence[str]) -> str:
    return "; ".join(names)


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _name(curve: dict) -> str:
    return ", ".join([curve["method"], *clipping(curve.get("max_grad_norm"))])


def _range(curve: dict, record: dict) -> str:
    name, best, found = _name(curve), curve["best"], curve["range"]
    if best is None:
        return f"{name}: some run diverged at every learning rate, so that there is no range."
    versus = f"; {_versus(curve['versus_standard'])}" if curve["versus_standard"] else ""
    low, high = (_rate(found[end]) for end in ("low", "high"))
    return (
        f"{name}: within {_percent(record['within'])} of its best {metric_name(record['metric'])} "
        f"({best['value']:.4g} at {exact(best['learning_rate'])}) from a learning rate of {low} to {high}, a factor of "
        f"{_bounded(found['factor'])}, over {_seeds(curve['seeds'])}{versus}."
    )


def _rate(end: dict) -> str:
    """An end of a range: the grid's own rate where it ends with the grid."""
    if end["is"] == EXACT:
        return f"{end['value']:.2g}"
    return f"{exact(end['value'])} or {'lower' if end['is'] == MOST else 'higher'}"


def _versus(versus: dict) -> str:
    ratio = versus["ratio"]
    if ratio["is"] == UNKNOWN:
        return "its range and Standard's both end with the grid, so that neither is known to be the wider"
    return f"{_bounded(ratio)} times as wide as Standard's"


def _bounded(number: dict) -> str:
    """A factor with what it is where the grid ends, and its interval: ``at least 3.9 (at least 2.8)``."""
    value = f"{number['value']:.2g}" if number["is"] == EXACT else f"{number['is']} {number['value']:.2g}"
    low, high = number["ci_low"], number["ci_high"]
    if low is None and high is None:
        return value
    if low is None:
        return f"{value} ({MOST} {high:.2g})"
    return f"{value} ({LEAST} {low:.2g})" if high is None else f"{value} ({low:.2g} to {high:.2g})"


def _diverged(runs: Sequence[dict]) -> list[str]:
    """A sentence on the runs that diverged over all rates, and what that does to a range; none where none did."""
    counts = []
    for method in dict.fromkeys(run["method"] for run in runs):
        count, share = diverged_share(runs, method)
        counts.append(f"{method} {count} of {share['n']}")
    if not any(run.get("status") == "diverged" for run in runs):
        return []
    return [
        f"Runs that diverged: {', '.join(counts)}. Their loss counts as infinite: a range ends at the last rate at "
        f"which every run ended; means at one rate, and differences there, are of the runs that ended."
    ]
