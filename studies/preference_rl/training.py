"""Policy gradients on exact answers under five estimators at equal forwards, and which noise predicts the result.

Runs go into a folder of the caller's; what the page needs of them is in training.json. Only finished runs and finished
measurements count, and none is repeated.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from scipy import stats

from stabledllm.experiment.spread import sd_ratio, values_of
from stabledllm.experiment.summary import paired, t_interval
from stabledllm.reports.labels import metric_name
from stabledllm.runtime.files import read_json, write_json

HERE = Path(__file__).parent
RESULTS = HERE / "training.json"
RECIPE = HERE / "recipes" / "training.yaml"
METRICS = ("reward", "accuracy")
KEPT = ("method", "seed", "status", "metrics", "forward_passes", "rollout_forward_rows", "steps", "seconds")
RATES = ("1e-4", "2e-4", "4e-4")
"""Learning rates that Standard is tried with, on seeds of their own; the best is everybody's."""
TRIED = "seeds=[101,102]"
MEASUREMENT = ("data.train=synthetic:4-4", "grpo.budget=6", "grpo.group=8", "grpo.prompts=24", "grpo.repeats=4")
ROLLOUT = ("length=40", "steps=20", "block=8", "order=random", "cache=dual")
SMALL = (
    "seeds=[1,2]", "base.steps=2", "base.batch=2", "base.log_every=1", "base.save_every=1", "base.data.train_rows=16",
    "base.data.validation_rows=2", "base.data.test_rows=4", "base.grpo.group=4",
)  # fmt: skip
SMALL_MEASUREMENT = ("grpo.group=4", "grpo.prompts=2", "grpo.repeats=3", "grpo.exact=8")
PLACES = ("start", "end")
"""Where the noise is measured: at the shipped model, and after Standard's first run, its ratios to the shipped one."""
PREDICTORS = {"variance": "variance of the gradient", "bias": "bias of the gradient's direction"}
DRAWS = 4000


def measure(work: Path, *, small: bool = False, results: Path = RESULTS, jobs: str = "1") -> None:
    """Make the runs and measurements that are missing, and write the results after each part."""
    out = work / "training"
    more = SMALL if small else ()
    for rate in RATES:
        words = (f"base.trainer.learning_rate={rate}", "methods=[standard]", f"out={_tried(out, rate)}", *more)
        command("experiment", RECIPE, *words, *(() if small else (TRIED,)), "--jobs", jobs)
    rate = best_rate(rewards_of_rates(out))
    command("experiment", RECIPE, f"base.trainer.learning_rate={rate}", f"out={out}", *more, "--jobs", jobs)
    publish(out, results)
    for place in PLACES:
        if not (out / f"noise-{place}" / "policy_noise.json").is_file():
            command(*_measuring(out, place, small))
        publish(out, results)


def _tried(out: Path, rate: str) -> Path:
    return out / "rates" / rate


def rewards_of_rates(out: Path) -> dict[str, list[float]]:
    """The final rewards of Standard's runs under each learning rate."""
    tried = {rate: read_json(_tried(out, rate) / "results.json")["runs"] for rate in RATES}
    return {rate: list(values_of(runs, "standard", "reward").values()) for rate, runs in tried.items()}


def best_rate(rewards: dict[str, list[float]]) -> str:
    """The learning rate with the highest mean of final rewards, the lowest such; a diverged run has none."""
    return max((rate for rate in rewards if rewards[rate]), key=lambda rate: fmean(rewards[rate]))


def command(*words: object) -> None:
    """One of the library's commands, shown as it is."""
    print("$ stabledllm", *words, flush=True)
    subprocess.run([sys.executable, "-m", "stabledllm", *map(str, words)], check=True)


def _measuring(out: Path, place: str, small: bool) -> list[object]:
    recipe = read_json(out / "results.json")["config"]
    named = [name for name in recipe["methods"] if name not in ("espo", "coupled", "one-step", "standard")]
    presets = [name for name in recipe["methods"] if name in ("espo", "coupled", "one-step")]
    words = ["decompose", "objective.kind=grpo", "--out", out / f"noise-{place}", "--methods", ",".join(named)]
    words += [f"grpo.presets=[{','.join(presets)}]", *(f"grpo.rollout.{key}" for key in ROLLOUT)]
    if place == "end":
        first = out / "runs" / "standard" / f"seed-{recipe['seeds'][0]}" / "model"
        words += ["--model", first, "grpo.old=tiny"]
    else:
        words += ["--model", "tiny"]
    given = dict(word.split("=", 1) for word in MEASUREMENT)
    given |= dict(word.split("=", 1) for word in SMALL_MEASUREMENT) if small else {}
    return [*words, *(f"{key}={value}" for key, value in given.items())]


def publish(out: Path, results: Path) -> None:
    """Write what the page needs of the runs and measurements that are finished."""
    found = read_json(out / "results.json")
    record = {
        "rates": rewards_of_rates(out),
        "untuned": (found["untuned"] or {}).get("metrics"),
        "runs": [{key: run.get(key) for key in KEPT} for run in found["runs"]],
        "notes": found["notes"],
        "noise": {
            place: _noise(read_json(path))
            for place in PLACES
            if (path := out / f"noise-{place}" / "policy_noise.json").is_file()
        },
        "versions": found["versions"],
        "device": found["device"],
    }
    write_json(results, record)


def _noise(record: dict) -> dict:
    """For each estimator its noise over Standard's, and the cosine of its mean gradient with the bound's."""
    kept = ("name", "forwards", "of_bound", "direction", "offset", "bias")
    rows = [
        {key: row[key] for key in kept} | {"gradient": row["over_standard"]["gradient"]} for row in record["methods"]
    ]
    return {"prompts": record["prompts"], "mean_reward": record["mean_reward"], "methods": rows}


def names_of(record: dict) -> list[str]:
    """The estimators of the runs, Standard first."""
    return list(dict.fromkeys(["standard", *(run["method"] for run in record["runs"])]))


def predictor(record: dict, place: str, kind: str) -> dict[str, float]:
    """For each estimator of the runs, how noisy or how far from the bound's direction its gradient is."""
    rows = {row["name"]: row for row in record["noise"].get(place, {}).get("methods", [])}

    def worth(row: dict) -> float | None:
        if kind == "bias":
            return None if row["direction"]["value"] is None else 1 - row["direction"]["value"]
        return row["gradient"]["value"]

    found = {name: worth(rows[name]) for name in names_of(record) if name in rows}
    return {name: value for name, value in found.items() if value is not None}


def rank_correlation(level: dict[str, float], runs: Sequence[dict], metric: str, seed: int = 0) -> dict | None:
    """Spearman's correlation over estimators between a predictor and the final metric, with a 95 % interval.

    The interval is a percentile bootstrap over seeds and estimators together, so that neither the luck of the seeds nor
    the choice of estimators is taken for granted. None for fewer than 4 estimators or 2 common seeds.
    """
    each = {name: values_of(runs, name, metric) for name in level}
    names = [name for name in level if each[name]]
    seeds = sorted(set.intersection(*(set(each[name]) for name in names))) if names else []
    if len(names) < 4 or len(seeds) < 2:
        return None
    table, ranks = np.array([[each[name][s] for s in seeds] for name in names]), np.array([level[n] for n in names])
    rng = np.random.default_rng(seed)
    rows, columns = (rng.integers(size, size=(DRAWS, size)) for size in (len(names), len(seeds)))
    drawn = _spearman(ranks[rows], table[rows[:, :, None], columns[:, None, :]].mean(2))
    if not len(drawn) or len(set(ranks)) < 2 or len(set(table.mean(1))) < 2:
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    value = stats.spearmanr(ranks, table.mean(1)).statistic
    return {"value": float(value), "ci_low": float(low), "ci_high": float(high), "n": len(names), "seeds": len(seeds)}


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each line of two tables; a line of which either has equal values alone is left out."""
    vary = (np.ptp(one, 1) > 0) & (np.ptp(other, 1) > 0)
    a, b = (stats.zscore(stats.rankdata(table[vary], axis=1), axis=1) for table in (one, other))
    return (a * b).mean(1)


def section(record: dict) -> str:
    """The part of the page that the runs and measurements decide."""
    parts = [_results(record), *(_noises(record, place) for place in PLACES), _predicted(record)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _results(record: dict) -> str:
    lines = [
        "| estimator | seeds | reward | against Standard | accuracy | against Standard | sd of accuracy | "
        "÷ Standard's | time of a run |",
        "|---" * 9 + "|",
    ]
    for name in names_of(record):
        cells = [f"`{name}`", str(len(values_of(record["runs"], name, "reward")))]
        for metric in METRICS:
            cells += _against_standard(record["runs"], name, metric)
        lines.append(f"| {' | '.join([*cells, *_spread(record['runs'], name), _time(record['runs'], name)])} |")
    untuned = (record["untuned"] or {}).get("accuracy")
    before = f" The shipped model's accuracy is {untuned['value']:.3f} ± {untuned['stderr']:.3f}." if untuned else ""
    tried = ", ".join(f"{rate} ({fmean(each):.3f})" for rate, each in record["rates"].items() if each)
    told = (
        f"Learning rate {best_rate(record['rates'])}, under which Standard's final reward was best on two other seeds: "
        f"{tried}. Intervals are 95 %, over seeds; differences are paired. {' '.join(record['notes'])}"
    )
    return "\n".join(lines) + f"\n\n{told}{before}"


def _against_standard(runs: Sequence[dict], name: str, metric: str) -> list[str]:
    """The mean over seeds with its interval, and the paired difference from Standard."""
    mine = values_of(runs, name, metric)
    if not mine:
        return ["–", "–"]
    found = paired(mine, values_of(runs, "standard", metric)) if name != "standard" else None
    difference = with_ends(found["difference"], found["ci_low"], found["ci_high"], "+.3f") if found else ""
    return [with_ends(fmean(mine.values()), *t_interval(list(mine.values()))), difference]


def _spread(runs: Sequence[dict], name: str) -> list[str]:
    mine = values_of(runs, name, "accuracy")
    ratio = sd_ratio(mine, values_of(runs, "standard", "accuracy")) if name != "standard" else None
    told = with_ends(ratio["value"], ratio["ci_low"], ratio["ci_high"], ".2f") if ratio else ""
    return [f"{stdev(mine.values()):.3f}" if len(mine) > 1 else "–", told]


def _time(runs: Sequence[dict], name: str) -> str:
    seconds = [run["seconds"] for run in runs if run["method"] == name]
    return f"{min(seconds):.0f} to {max(seconds):.0f} s" if seconds else "–"


def with_ends(value: float, low: float | None, high: float | None, form: str = ".3f") -> str:
    """A number with its interval, where there is one."""
    return f"{value:{form}}" + (f" ({low:{form}} to {high:{form}})" if low is not None and high is not None else "")


def _noises(record: dict, place: str) -> str:
    if place not in record["noise"]:
        return ""
    found, where = record["noise"][place], {"start": "At the shipped model", "end": "After Standard's first run"}[place]
    lines = [
        f"{where}, on {found['prompts']} prompts whose responses differ in reward (mean reward "
        f"{found['mean_reward']:.2f}):",
        "",
        "| estimator | forwards | variance of the gradient ÷ Standard's | cosine with the bound's gradient | off the "
        "bound, nats per token |",
        "|---" * 5 + "|",
    ]
    for row in found["methods"]:
        shown = _cosine(row["direction"])
        ratio = row["gradient"]
        noise = "–" if ratio["value"] is None else with_ends(ratio["value"], ratio["ci_low"], ratio["ci_high"], ".2f")
        lines.append(f"| `{row['name']}` | {row['forwards']} | {noise} | {shown} | {row['offset']['value']:+.2g} |")
    return "\n".join(lines)


def _cosine(stored: dict) -> str:
    """A cosine with its 95 % interval, where that is known."""
    if stored["value"] is None:
        return "–"
    error = 1.96 * (stored["stderr"] or math.nan)
    low, high = stored.get("ci_low", stored["value"] - error), stored.get("ci_high", stored["value"] + error)
    return f"{stored['value']:.2f}" if math.isnan(low) else with_ends(stored["value"], low, high, ".2f")


def _predicted(record: dict) -> str:
    """Which of variance and bias orders the estimators as their final reward and accuracy do, if any."""
    lines, sure = [], []
    for place in record["noise"]:
        for kind, words in PREDICTORS.items():
            for metric in METRICS:
                found = rank_correlation(predictor(record, place, kind), record["runs"], metric)
                if found is None:
                    continue
                ends = with_ends(found["value"], found["ci_low"], found["ci_high"], "+.2f")
                lines.append(f"| {words}, {place} | {metric_name(metric)} | {ends} |")
                if found["ci_high"] < 0:  # less noise goes with a better result
                    sure.append(f"the {words} ({place}) predicts the {metric_name(metric)}")
    if not lines:
        return ""
    told = "; ".join(sure) if sure else "neither variance nor bias predicts the result: no interval lies below 0"
    count = len(names_of(record))
    head = ["| predictor | of | Spearman's correlation over estimators |", "|---" * 3 + "|"]
    return "\n".join([*head, *lines]) + (
        f"\n\n{told[0].upper()}{told[1:]}. A useful predictor correlates negatively. {count} estimators are few: their "
        f"choice, drawn anew with that of the seeds, is most of each interval."
    )
