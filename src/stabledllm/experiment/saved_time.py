"""How much of Standard's time a method needs: its share of Standard's forwards, and how long a forward takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from stabledllm.experiment.summary import t_interval
from stabledllm.noise.parts import STANDARD
from stabledllm.stats.intervals import of_sum


def seconds_ratio(runs: Sequence[dict], method: str) -> dict | None:
    """The method's seconds a forward pass over Standard's: the geometric mean over common seeds and its 95 % interval.

    None where no seed has both. The seconds are those of ``run.json``: the steps and the evaluation losses.
    """
    paces = [
        {
            run["seed"]: run["seconds"] / run["forward_passes"]
            for run in runs
            if run["method"] == name
            and run.get("status") != "diverged"
            and run.get("seconds")
            and run["forward_passes"]
        }
        for name in (method, STANDARD)
    ]
    logs = [math.log(pace / paces[1][seed]) for seed, pace in paces[0].items() if seed in paces[1]]
    if not logs:
        return None
    ends = (end if end is None else math.exp(end) for end in t_interval(logs))
    return dict(zip(("value", "ci_low", "ci_high"), (math.exp(mean(logs)), *ends), strict=True)) | {"n": len(logs)}


def wall_time(share: Mapping, pace: Mapping | None) -> dict | None:
    """The share of Standard's time that a method needs: the share of its forwards times the ratio of their seconds.

    None where the share lies beyond the budgets. The two errors are taken to be independent (Zou and Donner, 2008).
    """
    if pace is None or share["value"] is None:
        return None
    value, parts = share["value"] * pace["value"], []
    for part in (share, pace):
        ends = [part["value"] if part[end] is None else part[end] for end in ("ci_low", "ci_high")]
        parts.append((math.log(part["value"]), (math.log(ends[0]), math.log(ends[1]))))
    low, high = map(math.exp, of_sum(parts))
    known = share["known"] and pace["ci_low"] is not None
    return {
        "value": value,
        "ci_low": low if known and share["ci_low"] is not None else None,
        "ci_high": high if known and share["ci_high"] is not None else None,
    }
