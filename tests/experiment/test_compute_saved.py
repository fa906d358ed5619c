"""Compute saved: readings off known curves, against brute force, and how often their intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stabledllm.experiment.compute_saved import (
    Budget,
    compute_saved,
    falling,
    is_told_to_improve,
    read_off,
    until_best,
)
from stabledllm.experiment.reference import name_at
from stabledllm.experiment.saved_time import seconds_ratio, wall_time
from stabledllm.experiment.summary import paired
from stabledllm.reports.saved import in_words
from tests.checks.moments import assert_covers

MULTIPLES = (0.75, 1.0, 1.25, 1.5, 2.0)
OWN = 4800
"""Standard's forward passes."""
TRIALS = 400


def law(multiple: float) -> float:
    """A known curve: what Standard ends with at a multiple of its forwards."""
    return 0.08 + 0.03 / multiple


def curve_of(table: np.ndarray, multiples=MULTIPLES) -> list[Budget]:
    """Standard's budgets from its values, shape (budgets, seeds)."""
    return [Budget(m, m * OWN, dict(enumerate(row))) for m, row in zip(multiples, table.tolist(), strict=True)]


def drawn(
    seeds: int, truth: float, seed: int, sd: float = 0.003, together: float = 0.4
) -> tuple[list[Budget], dict[int, float]]:
    """Runs whose seeds share a part of their noise, and a method that truly needs ``truth`` of Standard's forwards."""
    rng = np.random.default_rng(seed)
    shared, own = rng.standard_normal(seeds), rng.standard_normal((len(MULTIPLES) + 1, seeds))
    noise = sd * (together * shared + 0.9 * own)
    means = np.array([*map(law, MULTIPLES), law(1 / truth)])
    values = means[:, None] + noise
    return curve_of(values[:-1]), dict(enumerate(values[-1].tolist()))


def test_a_reading_is_where_the_curve_passes_the_methods_mean():
    """Of a known smooth curve the straight pieces move it by less than 1.1 %, wherever it lies."""
    exact = curve_of(np.array([[law(m)] * 2 for m in MULTIPLES]))
    for truth in np.linspace(0.51, 1.32, 60):
        found = read_off(exact, dict.fromkeys(range(2), law(1 / truth)), OWN, lower=True)
        assert found.value == pytest.approx(truth, rel=0.011)
        assert found.ends is None, "seeds without spread tell no error"
    same = read_off(exact, {0: law(1), 1: law(1)}, OWN, lower=True)
    assert same.value == pytest.approx(1.0, rel=1e-12), "Standard's own value needs all of its forwards"
    doubled = read_off(exact, {0: law(1), 1: law(1)}, 2 * OWN, lower=True)
    assert doubled.value == pytest.approx(2.0), "a method that spent twice the forwards for it needs twice"
    assert (doubled.least, doubled.most) == (pytest.approx(1.0), pytest.approx(2 / 0.75))


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_holds_the_budgets_that_a_paired_t_test_accepts(seed):
    """Against scipy's test at 2,000 budgets; a higher metric that is better gives the same as its mirror image."""
    curve, values = drawn(4, 0.9, seed, sd=0.006)
    found = read_off(curve, values, OWN, lower=True)
    logs = np.log([budget.forwards for budget in curve])
    table = np.array([list(budget.values.values()) for budget in curve])
    mine = np.array(list(values.values()))
    grid = np.linspace(logs[0], logs[-1], 2001)
    lines = np.array([np.interp(grid, logs, table[:, s]) for s in range(4)])
    test = stats.ttest_rel(lines, np.broadcast_to(mine[:, None], lines.shape), axis=0)
    accepted = grid[test.pvalue > 0.05]
    low, high = found.ends
    step = grid[1] - grid[0]
    if test.pvalue[-1] > 0.05 or test.statistic[-1] > 0:
        assert low is None
    else:
        assert math.log(OWN / low) == pytest.approx(accepted.max(), abs=2 * step)
    if test.pvalue[0] > 0.05 or test.statistic[0] < 0:
        assert high is None
    else:
        assert math.log(OWN / high) == pytest.approx(accepted.min(), abs=2 * step)
    mirrored = [Budget(b.multiple, b.forwards, {s: -v for s, v in b.values.items()}) for b in curve]
    assert read_off(mirrored, {s: -v for s, v in values.items()}, OWN, lower=False) == found


def test_it_holds_1_exactly_where_the_paired_test_against_standard_finds_nothing():
    outcomes = set()
    for seed in range(40):
        curve, values = drawn(5, 0.85, seed)
        low, high = read_off(curve, values, OWN, lower=True).ends
        holds = (low is None or low <= 1) and (high is None or high >= 1)
        p_value = paired(values, curve[1].values)["p_value"]
        if p_value > 0.05:
            assert holds, "the budget of Standard itself is accepted"
        outcomes.add((holds, p_value > 0.05))
    assert {(True, True), (False, False)} <= outcomes


def test_what_lies_beyond_the_budgets_is_said_to_lie_there():
    table = np.array([[law(m) - 1e-4, law(m) + 1e-4] for m in MULTIPLES])
    better = read_off(curve_of(table), {0: 0.05, 1: 0.0501}, OWN, lower=True)
    assert (better.side, better.value, better.ends) == ("less", None, (None, pytest.approx(0.5)))
    assert in_words(better.as_dict()) == "less than 0.50"
    worse = read_off(curve_of(table), {0: 0.2, 1: 0.2001}, OWN, lower=True)
    assert (worse.side, worse.value, worse.ends) == ("more", None, (pytest.approx(4 / 3), None))
    assert in_words(worse.as_dict()) == "more than 1.33"
    near = read_off(curve_of(table), {0: law(2) - 2e-3, 1: law(2) + 1.4e-3}, OWN, lower=True)
    assert near.side == "less"
    assert in_words(near.as_dict()) == f"less than 0.50 (at most {near.ends[1]:.2f})"
    apart = read_off(curve_of(table), {0: law(2) - 8e-3, 1: law(2) + 7e-3}, OWN, lower=True)
    assert in_words(apart.as_dict()) == "not told (less than 0.50 to more than 1.33)", "two seeds that far apart"
    alone = read_off(curve_of(table[:, :1]), {0: law(1.2)}, OWN, lower=True)
    assert (alone.n, alone.ends) == (1, None)
    assert in_words(alone.as_dict()) == "0.83 (no interval)"
    assert read_off(curve_of(table), {7: 0.1}, OWN, lower=True) is None, "no seed in common"
    assert read_off(curve_of(table)[:1], {0: 0.1, 1: 0.1}, OWN, lower=True) is None, "one budget is no curve"


def test_a_curve_that_rises_by_chance_is_held_to_fall():
    assert falling([5.0, 4.0, 4.5, 3.0, 3.5, 3.6]).tolist() == [5.0, 4.25, 4.25, *[pytest.approx(10.1 / 3)] * 3]
    assert falling([1.0, 2.0, 3.0]).tolist() == [2.0, 2.0, 2.0]
    noisy = np.array([0.120, 0.109, 0.110, 0.100, 0.095])[:, None] + np.array([[0.0, 1e-3, -1e-3]])
    found = read_off(curve_of(noisy), {0: 0.105, 1: 0.1039, 2: 0.1061}, OWN, lower=True)
    expected = np.interp(-0.105, -np.array([0.1095, 0.100]), np.log([1.25, 1.5]))
    assert found.value == pytest.approx(math.exp(-expected))
    assert found.ends[0] < found.value < found.ends[1]


def test_a_standard_that_overfits_is_read_off_up_to_its_best_budget():
    rng = np.random.default_rng(3)
    values = np.array([0.120, 0.110, 0.106, 0.115, 0.140])[:, None] + 0.001 * rng.standard_normal((5, 6))
    assert [budget.multiple for budget in until_best(curve_of(values), lower=True)] == [0.75, 1.0, 1.25]
    chance = np.array([0.120, 0.110, 0.106, 0.104, 0.1041])[:, None] + 0.001 * rng.standard_normal((5, 6))
    assert len(until_best(curve_of(chance), lower=True)) == 5, "what may be chance is kept"
    assert is_told_to_improve(curve_of(chance), lower=True)
    flat = 0.4 + 0.03 * rng.standard_normal((5, 6))
    assert not is_told_to_improve(curve_of(flat), lower=False)
    assert not is_told_to_improve(curve_of(values)[:1], lower=True)


def run(method: str, seed: int, nll: float | None, forwards: int = OWN, seconds: float = 48.0, **more) -> dict:
    metrics = {"validation_nll": {"value": nll, "stderr": 0.01}} if nll is not None else {}
    spent = {"forward_passes": forwards, "probe_forward_passes": 0, "seconds": seconds, "steps": forwards // 16}
    return {"method": method, "seed": seed, "metrics": metrics} | spent | more


def study(multiples=MULTIPLES, seeds: int = 4, worse: float = 0.0) -> tuple[list[dict], list[dict]]:
    """Runs of Standard at each multiple and of methods at its own forwards, and those at other budgets."""
    rng = np.random.default_rng(1)
    made = [
        run(name_at(m), s, law(m) + worse * m + 3e-4 * rng.standard_normal(), round(m * OWN), 40 * m + s)
        for m in multiples
        for s in range(seeds)
    ]
    runs = [r for r in made if r["method"] == "standard"]
    for name, truth, extra in (
        ("lowdisc+fixedcount", 0.8, {}),
        ("ppots", 0.9, {"probe_forward_passes": 2400}),
        ("mirror", 1.2, {}),
    ):
        noise = 3e-4 * rng.standard_normal(seeds)
        runs += [run(name, s, law(1 / truth) + own, seconds=60.0, **extra) for s, own in enumerate(noise.tolist())]
    return runs, [r for r in made if r["method"] != "standard"]


def test_every_method_is_read_off_with_its_time_and_its_probe():
    runs, reference = study()
    found = compute_saved(runs, reference)
    (entry,) = found["metrics"]
    assert (entry["metric"], entry["improves"]) == ("validation_nll", True)
    assert [point["multiple"] for point in entry["curve"]] == [*MULTIPLES]
    by_name = {method["method"]: method for method in entry["methods"]}
    assert list(by_name) == ["lowdisc+fixedcount", "ppots", "mirror"]
    for name, truth in (("lowdisc+fixedcount", 0.8), ("ppots", 0.9), ("mirror", 1.2)):
        assert by_name[name]["ci_low"] < truth < by_name[name]["ci_high"]
        assert by_name[name]["n"] == 4
    pace = by_name["ppots"]["seconds_per_forward"]
    assert pace["value"] == pytest.approx(60 / np.prod([40, 41, 42, 43]) ** 0.25)
    time = by_name["ppots"]["wall_time"]
    assert time["value"] == pytest.approx(by_name["ppots"]["value"] * pace["value"])
    assert time["ci_low"] < time["value"] < time["ci_high"]
    assert time["ci_high"] / time["ci_low"] > by_name["ppots"]["ci_high"] / by_name["ppots"]["ci_low"]
    less, more = found["sentences"]
    with_probe = by_name["ppots"]["value"] * 1.5
    assert less.startswith("Share of Standard's forwards needed to end at the same validation NLL, less than all: ")
    assert f"lowdisc+fixedcount {in_words(by_name['lowdisc+fixedcount'])}; ppots " in less
    assert f", with the 2,400 of its probe {with_probe:.2f}." in less
    assert more.startswith("More than all of Standard's forwards for the same validation NLL: mirror 1.")


def test_runs_that_diverged_or_are_missing_take_their_seed_out():
    runs, reference = study()
    reference[0] = run(reference[0]["method"], 0, None, status="diverged")
    runs = [r for r in runs if (r["method"], r["seed"]) != ("ppots", 3)]
    (entry,) = compute_saved(runs, reference)["metrics"]
    by_name = {method["method"]: method["n"] for method in entry["methods"]}
    assert [point["n"] for point in entry["curve"]] == [3] * 5, "a budget's mean is of the seeds of all"
    kept = [r["metrics"]["validation_nll"]["value"] for r in runs if r["method"] == "mirror" and r["seed"]]
    assert entry["methods"][2]["mean"] == pytest.approx(np.mean(kept))
    assert by_name == {"lowdisc+fixedcount": 3, "ppots": 2, "mirror": 3}
    assert compute_saved(runs, []) == {"metrics": [], "sentences": []}, "no other budget has finished yet"
    assert compute_saved([], reference)["metrics"][0]["methods"] == []


def test_nothing_is_read_off_a_standard_that_more_forwards_do_not_help():
    runs, reference = study(worse=0.06)
    (sentence,) = compute_saved(runs, reference)["sentences"][-1:]
    assert sentence.startswith("In validation NLL, Standard is not told to gain from more forwards (")
    runs, reference = study(multiples=(0.5, 0.75, 1.0, 2.0), worse=0.05)
    first, *_ = compute_saved(runs, reference)["sentences"]
    assert first.startswith("Standard's validation NLL gets worse again after 0.75 times its forwards: ")


def test_time_is_known_only_where_the_share_and_the_seconds_are():
    share = {"value": 0.8, "ci_low": None, "ci_high": 0.9, "known": True}
    pace = {"value": 1.1, "ci_low": 1.0, "ci_high": 1.21}
    found = wall_time(share, pace)
    assert found["value"] == pytest.approx(0.88)
    assert found["ci_low"] is None
    expected = math.exp(math.log(0.88) + math.hypot(math.log(0.9 / 0.8), math.log(1.1)))
    assert found["ci_high"] == pytest.approx(expected)
    assert wall_time(share | {"value": None}, pace) is None
    assert wall_time(share, None) is None
    assert wall_time(share, {"value": 1.1, "ci_low": None, "ci_high": None})["ci_high"] is None
    assert seconds_ratio([run("standard", 0, 0.1)], "mirror") is None


@pytest.mark.statistical
@pytest.mark.parametrize("truth", [0.6, 0.83, 1.0, 1.25])
@pytest.mark.parametrize("seeds", [3, 6, 12])
def test_intervals_hold_the_truth(seeds, truth):
    hits = sum(holds(read_off(*drawn(seeds, truth, 1000 * seeds + i), OWN, lower=True), truth) for i in range(TRIALS))
    assert_covers(hits, TRIALS, f"a share of {truth} over {seeds} seeds")


@pytest.mark.statistical
@pytest.mark.parametrize("truth", [0.4, 1.6])
@pytest.mark.parametrize("seeds", [3, 12])
def test_a_truth_beyond_the_budgets_is_not_put_inside(seeds, truth):
    hits = sum(holds(read_off(*drawn(seeds, truth, 77 * seeds + i), OWN, lower=True), truth) for i in range(TRIALS))
    assert_covers(hits, TRIALS, f"a share of {truth}, beyond the budgets, over {seeds} seeds")


@pytest.mark.statistical
def test_a_bootstrap_over_3_seeds_and_a_curve_without_error_are_found_to_miss():
    """What the interval is built to avoid: resampled seeds, and Standard's means taken for the truth."""
    bootstrap, truth, rng = 0, 0.83, np.random.default_rng(5)
    for i in range(TRIALS):
        curve, values = drawn(3, truth, 9000 + i)
        logs = np.log([budget.forwards for budget in curve])
        table = np.array([list(budget.values.values()) for budget in curve])
        mine = np.array(list(values.values()))
        picks = rng.integers(3, size=(100, 3))
        logs_read = [np.interp(-mine[p].mean(), -falling(table[:, p].mean(1)), logs) for p in picks]
        low, high = np.percentile(logs_read, [2.5, 97.5])
        bootstrap += low <= math.log(OWN / truth) <= high
    with pytest.raises(AssertionError):
        assert_covers(bootstrap, TRIALS, "bootstrap over 3 seeds")
    many = sum(_without_its_error(*drawn(12, 1.0, 500 + i, together=0.0), 1.0) for i in range(TRIALS))
    with pytest.raises(AssertionError):
        assert_covers(many, TRIALS, "the curve taken for exact, 12 seeds")


def _without_its_error(curve: list[Budget], values: dict[int, float], truth: float) -> bool:
    """Whether the method's own interval, read off Standard's means as if they were the truth, holds the truth."""
    mine, logs = np.array(list(values.values())), np.log([budget.forwards for budget in curve])
    means = falling([float(np.mean(list(budget.values.values()))) for budget in curve])
    half = stats.t.ppf(0.975, len(mine) - 1) * mine.std(ddof=1) / len(mine) ** 0.5
    ends = [np.interp(-(mine.mean() + side), -means, logs) for side in (half, -half)]
    return ends[0] <= math.log(OWN / truth) <= ends[1]


def holds(reading, truth: float) -> bool:
    low, high = reading.ends
    return (low is None or low <= truth) and (high is None or truth <= high)


def test_a_flat_standard_that_ends_where_the_method_does_tells_no_share():
    """As with an accuracy of 0 in every run: any share would do."""
    flat = curve_of(np.zeros((5, 2)))
    found = read_off(flat, {0: 0.0, 1: 0.0}, OWN, lower=False)
    assert (found.value, found.side, found.ends) == (None, "inside", None)
    assert in_words(found.as_dict()) == "not told"
    assert wall_time(found.as_dict(), {"value": 1.0, "ci_low": None, "ci_high": None}) is None
    better = read_off(flat, {0: 0.1, 1: 0.1}, OWN, lower=False)
    assert (better.value, better.side) == (None, "less")
    assert in_words(read_off(flat, {0: -0.1, 1: -0.1}, OWN, lower=False).as_dict()) == "more than 1.33 (no interval)"
