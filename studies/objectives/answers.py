"""The statistics of the page: differences, compute saved and spreads over paired seeds, and the four answers."""

from __future__ import annotations

from statistics import fmean

from scipy import stats
from studies.objectives.rows import BASE, RECOMMENDED, ROWS, STANDARD, Row, less_noise

from stabledllm.experiment.compute_saved import compute_saved
from stabledllm.experiment.spread import paired_differences, sd_ratio, values_of
from stabledllm.experiment.summary import paired
from stabledllm.likelihood.compared import holm
from stabledllm.reports.saved import in_words

METRICS = {"validation_nll": "bound", "duel_nll": "decoder's NLL", "accuracy": "accuracy"}
LEVEL = 0.05
AVERAGED = "averaged_nll"


def runs_of(results: dict) -> list[dict]:
    """Every run at Standard's own budget, its method the name of its row."""
    return [
        run | {"method": row.name}
        for row in ROWS
        for run in results["rows"].get(row.name, {}).get("runs", [])
        if run["method"] == row.method
    ]


def values(results: dict, row: Row, metric: str) -> dict[int, float]:
    """A row's final metric by seed, if finished; ``averaged_nll`` is that of its best average of the weights."""
    if metric != AVERAGED:
        return values_of(runs_of(results), row.name, metric)
    own = [run for run in runs_of(results) if run["method"] == row.name]
    return min(averages(own).values(), key=lambda found: fmean(found.values()), default={})


def averages(runs: list[dict]) -> dict[str, dict[int, float]]:
    """The final bound by the name of the average of weights, then by seed."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        for name, record in (run.get("averages") or {}).items():
            found.setdefault(name, {})[run["seed"]] = record["metrics"]["validation_nll"]["value"]
    return found


def versus(results: dict, row: Row, other: Row, metric: str) -> dict | None:
    """The paired difference of two rows with its interval and p value, None without two common seeds that differ."""
    mine, theirs = values(results, row, metric), values(results, other, metric)
    found = paired(mine, theirs)
    each = paired_differences(mine, theirs)
    if found is None or len(each) < 2 or len(set(each)) < 2:
        return None
    return found | {"n": len(each), "p": float(stats.ttest_1samp(each, 0).pvalue)}


def all_versus(results: dict, metric: str) -> dict[str, dict]:
    """Every finished row against Standard, with p values after Holm's correction over the rows."""
    found = {row.name: versus(results, row, BASE, metric) for row in ROWS if row != BASE}
    found = {name: difference for name, difference in found.items() if difference}
    for difference, p in zip(found.values(), holm([each["p"] for each in found.values()]), strict=True):
        difference["p_holm"] = p
    return found


def saved(results: dict, metric: str) -> dict | None:
    """Standard's curve over its forwards and what share of them every row needs for its own final metric."""
    every = runs_of(results)
    other = [run for run in results["rows"].get(BASE.name, {}).get("runs", []) if run["method"] != STANDARD]
    found = compute_saved(every, other)["metrics"]
    return next((entry for entry in found if entry["metric"] == metric), None)


def spread(results: dict, row: Row, metric: str) -> dict | None:
    """The sd over seeds over Standard's, with its interval."""
    return sd_ratio(values(results, row, metric), values(results, BASE, metric))


def answers(results: dict) -> list[str]:
    """Plain answers to the four questions, of what is finished, by the bound on held-out rows."""
    metric = "validation_nll"
    return [
        _regulariser(results, metric),
        _saves(results, metric),
        _adds_up(results, metric),
        _spread(results),
    ]


def _regulariser(results: dict, metric: str) -> str:
    pairs = {
        objective: versus(results, less_noise(objective), Row(objective, STANDARD), metric)
        for objective in dict.fromkeys(row.objective for row in ROWS)
    }
    pairs = {name: found for name, found in pairs.items() if found}
    if not pairs:
        return "Not measured yet."
    corrected = dict(zip(pairs, holm([found["p"] for found in pairs.values()]), strict=True))
    told = [f"`{name}` {_difference(found)}" for name, found in pairs.items()]
    worse = [n for n, found in pairs.items() if found["difference"] > 0 and corrected[n] < LEVEL]
    better = [n for n, found in pairs.items() if found["difference"] < 0 and corrected[n] < LEVEL]
    verdict = (
        f"Yes, under {_names(worse)}: less noise ends surely higher there"
        if worse
        else "There is no sign of it: under no objective does less noise end surely higher"
    )
    return (
        f"{verdict}; it ends surely lower under {_names(better) if better else 'none'} (paired t tests, Holm over "
        f"{len(pairs)}). Less noise minus the objective's own: {'; '.join(told)}."
    )


def _saves(results: dict, metric: str) -> str:
    entry = saved(results, metric)
    shares = {found["method"]: in_words(found) for found in entry["methods"]} if entry else {}
    less = shares.pop(RECOMMENDED.name, None)
    against = {row.name: versus(results, row, RECOMMENDED, metric) for row in ROWS if row.objective != "elbo"}
    against = {name: found for name, found in against.items() if found and name in shares}
    if less is None or not against:
        return "Not measured yet."
    corrected = dict(zip(against, holm([found["p"] for found in against.values()]), strict=True))
    better = [n for n, found in against.items() if found["difference"] < 0 and corrected[n] < LEVEL]
    told = "; ".join(f"`{name}` {shares[name]}" for name in against)
    verdict = f"Yes: {_names(better)}" if better else "No: none ends surely lower than the bound with less noise"
    return (
        f"{verdict} (paired t tests against it, Holm over {len(against)}). For the same bound on held-out rows "
        f"the bound with less noise needs {less} of Standard's forwards; {told}."
    )


def _adds_up(results: dict, metric: str) -> str:
    told = []
    for objective in dict.fromkeys(row.objective for row in ROWS):
        row, alone = less_noise(objective), Row(objective, STANDARD)
        own, both = versus(results, alone, BASE, metric), versus(results, row, RECOMMENDED, metric)
        if objective != "elbo" and own and both:
            told.append((objective, own, both))
    if not told:
        return "Not measured yet."
    gains = [objective for objective, own, _ in told if own["ci_high"] < 0]
    kept = [objective for objective, own, both in told if own["ci_high"] < 0 and both["ci_high"] < 0]
    each = "; ".join(
        f"`{name}` {_difference(own)} with its own noise, {_difference(both)} with less" for name, own, both in told
    )
    if not gains:
        return f"There is nothing to add: no objective ends below the bound's where both have Standard's noise. {each}."
    still = _names(kept) if kept else "none"
    return f"Of {_names(gains)}, which gain alone, {still} gain as surely with less noise. {each}."


def _spread(results: dict) -> str:
    ratios = {row.name: found for row in ROWS if row != BASE and (found := spread(results, row, "validation_nll"))}
    if not ratios:
        return "Not measured yet."
    sure = [name for name, found in ratios.items() if found["ci_high"] < 1 or found["ci_low"] > 1]
    told = "; ".join(f"`{name}` {_ratio(found)}" for name, found in ratios.items())
    verdict = f"Without correction for {len(ratios)} rows: {_names(sure)}" if sure else "No row's differs surely"
    rates = _spread_over_rates(results)
    return f"{verdict}. The sd of the final bound over seeds, over Standard's: {told}.{rates}"


def _spread_over_rates(results: dict) -> str:
    found = results.get("stability")
    if not found:
        return ""
    told = []
    for entry in found["rates"]["curves"]:
        sds = [(point["learning_rate"], point["sd"]) for point in entry["points"] if point["sd"] is not None]
        if entry["method"] == STANDARD and len(sds) > 1:
            least, most = (pick(sds, key=lambda each: each[1]) for pick in (min, max))
            norm = entry.get("max_grad_norm")
            clip = "unclipped" if norm == 0 else f"clipped at {norm:g}" if norm else ""
            told.append(f"{clip} from {least[1]:.4f} at {least[0]:g} to {most[1]:.4f} at {most[0]:g}")
    return f" Standard's own sd over the learning rates: {'; '.join(told)}." if told else ""


def _difference(found: dict) -> str:
    return f"{found['difference']:+.4f} ({found['ci_low']:+.4f} to {found['ci_high']:+.4f})"


def _ratio(found: dict) -> str:
    return f"{found['value']:.2f} ({found['ci_low']:.2f} to {found['ci_high']:.2f})"


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
