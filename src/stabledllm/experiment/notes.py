"""Sentences on what the runs of an experiment cost; every number in them was counted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from stabledllm.experiment.reference import multiple_of

_DESIGNS = {
    "compute": "Equal compute: every method was to train with Standard's forward passes, to within one optimizer step",
    "budget": "Equal compute: every response had the same budget of forwards under every method, and every method took "
    "the same rows and optimizer steps",
    "steps": "Equal steps: every method was to take the same rows and optimizer steps, whatever they cost",
}


def notes(equal: str, runs: Sequence[dict]) -> list[str]:
    """The ``notes`` of ``results.json``: forward passes and steps as counted, probes, rollouts, versions that changed.

    Args:
        equal: ``compute``, ``steps``, or ``budget`` where responses have a budget of forwards of their own.
    """
    whole = [run for run in runs if run.get("status") != "diverged" and multiple_of(run["method"]) is None]
    return [_cost(equal, whole), *_rollouts(whole), *_probes(runs), *_reference(runs), *_versions(runs)]


def _reference(runs: Sequence[dict]) -> list[str]:
    """A sentence on the forwards of Standard's runs at other budgets; none without such runs."""
    other = [run for run in runs if multiple_of(run["method"]) is not None]
    whole = [run for run in other if run.get("status") != "diverged"]
    forwards = {name: [r["forward_passes"] for r in own_runs] for name, own_runs in _by_method(whole)}
    lost = f"; {len(other) - len(whole)} of these runs diverged and are left out" if len(whole) < len(other) else ""
    if not other:
        return []
    return [
        f"Standard at other budgets, each with a schedule of its own, took forward passes: {_listed(forwards)}{lost}."
    ]


def _cost(equal: str, runs: Sequence[dict]) -> str:
    design = _DESIGNS[equal]
    forwards, steps = (
        {m: [r[key] for r in own_runs] for m, own_runs in _by_method(runs)} for key in ("forward_passes", "steps")
    )
    if not forwards:
        return f"{design}; no run has finished yet."
    parts = [design]
    if equal == "steps":
        parts.append(f"counted steps per run: {_listed(steps)}")
    parts.append(f"counted forward passes per run: {_listed(forwards)}")
    if equal != "steps" and len(every := {f for values in forwards.values() for f in values}) > 1:
        parts.append(_difference(forwards, steps, every))
    return "; ".join(parts) + "."


def _difference(forwards: dict[str, list[int]], steps: dict[str, list[int]], every: set[int]) -> str:
    """A clause on the run whose forwards are farthest from Standard's, and whether it is within one step of them."""
    of = "standard" if "standard" in forwards else next(iter(forwards))
    reference = mean(forwards[of])
    step = reference / mean(steps[of])
    name, far, own = max(
        ((m, f, f / s) for m, counts in forwards.items() for f, s in zip(counts, steps[m], strict=True)),
        key=lambda run: abs(run[1] - reference),
    )
    within = "within" if abs(far - reference) <= max(step, own) else "more than"
    return f"the farthest from {of}'s is {name}'s {far:,} ({far / reference - 1:+.2%}, {within} one optimizer step)"


def _listed(counts: dict[str, list[int]]) -> str:
    """The counts in words: ``3,840 in every run``, or method by method."""
    every = {count for values in counts.values() for count in values}
    if len(every) == 1:
        return f"{every.pop():,} in every run"
    return ", ".join(f"{name} {_span(values)}" for name, values in counts.items())


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _rollouts(runs: Sequence[dict]) -> list[str]:
    """A sentence on what it took to decode the responses that policy gradients learn from; none for other runs."""
    rows = {name: [r.get("rollout_forward_rows", 0) for r in own_runs] for name, own_runs in _by_method(runs)}
    if not any(map(any, rows.values())):
        return []
    return [f"On top of that, decoding the responses took forward rows: {_listed(rows)}."]


def _probes(runs: Sequence[dict]) -> list[str]:
    probes = {name: {r["probe_forward_passes"] for r in own_runs} for name, own_runs in _by_method(runs)}
    spent = ", ".join(f"{name} {_span(list(values))}" for name, values in probes.items() if any(values))
    if not spent:
        return []
    return [f"On top of that, P-POTS's probe, once a method and shared by its seeds, took forward passes: {spent}."]


def _versions(runs: Sequence[dict]) -> list[str]:
    """A sentence on the packages of which the runs had different versions, in a list that is empty for none."""
    versions: dict[str, list[str]] = {}
    for run in runs:
        for package, version in (run.get("versions") or {}).items():
            versions.setdefault(package, []).append(version)
    differing = [f"{p} {' and '.join(dict.fromkeys(v))}" for p, v in versions.items() if len(set(v)) > 1]
    return [f"The runs were not all made with the same packages: {', '.join(differing)}."] if differing else []


def _by_method(runs: Sequence[dict]) -> list[tuple[str, list[dict]]]:
    methods = dict.fromkeys(run["method"] for run in runs)
    return [(name, [run for run in runs if run["method"] == name]) for name in methods]
