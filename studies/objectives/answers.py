"""The statistics of the page: differences, compute saved and spreads over paired seeds, and the four answers."""

from __future__ import annotations

from statistics import fmean

from scipy import stats
from studies.objectives.rows import BASE, RECOMMENDED, ROWS, STANDARD, Row, less_noise

from stabledllm.experiment.compute_saved import compute_saved
from stabledllm.experiment.spread import paired_differences, sd_ratio, values_of
from stabledllm.experiment.summary import paired
from stabledllm.likelihood.holm import holm
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


def diverged(results: dict) -> dict[str, list[int]]:
    """The seeds of the runs that diverged, by row; they have no final metric."""
    found: dict[str, list[int]] = {}
    for run in runs_of(results):
        if run.get("status") == "diverged":
            found.setdefault(run["method"], []).append(run["seed"])
    return found


def values(results: dict, row: Row, metric: str) -> dict[int, float]:
    """A row's final metric by seed, if finished; ``averaged_nll`` is that of its best average of the weights."""
    if metric != AVERAGED:
        return values_of(runs_of(results), row.name, metric)
    own = [run for run in runs_of(results) if run["method"] == row.name]
    return min(averages(own).values(), key=lambda found: fmean(found.values()), default={})


def parts_of_bound(results: dict, row: Row) -> dict[int, list[float]]:
    """The parts of a row's final bound from each quarter of the mask ratios, by seed, where they were measured."""
    return {run["seed"]: run["quarters"] for run in runs_of(results) if run["method"] == row.name and "quarters" in run}


def averages(runs: list[dict]) -> dict[str, dict[int, float]]:
    """The final bound by the name of the average of weights, then by seed, of the runs of one row."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        for name, record in (run.get("averages") or {}).items():
            own = values_of([run | {"metrics": record["metrics"]}], run["method"], "validation_nll")
            if own:
                found.setdefault(name, {}).update(own)
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
    better = [[*against][i] for i in _surely_lower([*against.values()])]
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
    alone, added = ([found[which] for found in told] for which in (1, 2))
    gains = [told[i][0] for i in _surely_lower(alone)]
    kept = [told[i][0] for i in _surely_lower(added) if told[i][0] in gains]
    each = "; ".join(
        f"`{name}` {_difference(own)} with its own noise, {_difference(both)} with less" for name, own, both in told
    )
    if not gains:
        return f"There is nothing to add: no objective ends surely below the bound with Standard's noise. {each}."
    still = _names(kept) if kept else "none"
    return (
        f"Of {_names(gains)}, surely lower than the bound with Standard's noise, {still} with less noise too (paired t "
        f"tests, Holm over {len(told)} each). {each}."
    )


def _spread(results: dict) -> str:
    ratios = {row: found for row in ROWS if row != BASE and (found := spread(results, row, "validation_nll"))}
    if not ratios:
        return "Not measured yet."
    p = dict(zip(ratios, holm([_p_of_spread(results, row) for row in ratios]), strict=True))
    usual = results["rows"][BASE.name]["learning_rate"]
    rate = {row: results["rows"][row.name]["learning_rate"] for row in ratios}
    sure = [row.name for row in ratios if p[row] < LEVEL and rate[row] == usual]
    other = [row.name for row in ratios if p[row] < LEVEL and rate[row] != usual]
    verdict = f"Yes: {_names(sure)}" if sure else f"There is no sign of it: no row's differs surely at {usual:g}"
    more = f"; {_names(other)} differ, at learning rates of their own" if other else ""
    told = "; ".join(
        f"`{row.name}` {_ratio(found)}{'' if rate[row] == usual else f' at {rate[row]:g}'}"
        for row, found in ratios.items()
    )
    return (
        f"{verdict}{more} (Pitman and Morgan's test, Holm over {len(ratios)}). The sd of the final bound over seeds, "
        f"over Standard's at {usual:g}: {told}.{_spread_over_rates(results)}"
    )


def _p_of_spread(results: dict, row: Row) -> float:
    """The p value of equal sds over common seeds, by Pitman and Morgan: sum and difference are then uncorrelated."""
    mine, theirs = (values(results, one, "validation_nll") for one in (row, BASE))
    seeds = [seed for seed in mine if seed in theirs]
    sums, differences = ([mine[seed] + sign * theirs[seed] for seed in seeds] for sign in (1, -1))
    if len(set(differences)) < 2:
        return 1.0
    return float(stats.pearsonr(sums, differences).pvalue)


def _surely_lower(found: list[dict]) -> list[int]:
    """The places of the differences below 0 that stay so after Holm's correction."""
    corrected = holm([each["p"] for each in found])
    return [i for i, each in enumerate(found) if each["difference"] < 0 and corrected[i] < LEVEL]


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
