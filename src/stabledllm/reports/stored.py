"""Reads stored results, or refuses them in one sentence that names the file; null values become NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stabledllm.errors import UserError
from stabledllm.reports.labels import COMPONENT_LABELS
from stabledllm.reports.shapes import SHAPES, check_shape

NOISES = ("preference_noise", "policy_noise")
"""The records of the noise of a step on responses."""
SUBFOLDERS = ("", "decompose", "fit", "experiment")


@dataclass(frozen=True)
class Stored:
    """The results that a folder holds."""

    folder: Path
    decomposition: dict | None = None
    fits: list[dict] = field(default_factory=list)
    results: dict | None = None
    noises: list[dict] = field(default_factory=list)
    """The noise of preferences and of policy gradients, where they were measured."""
    files: list[Path] = field(default_factory=list)
    results_folder: Path | None = None
    """Where ``results.json`` lies, with the runs' own folders beside it."""
    has_spikes: bool = False
    """Whether the folder is that of a run with outlier or replayed steps."""


def gather(folder: Path) -> Stored:
    """The results in the folder and in its subfolders decompose/, fit/ and experiment/.

    Raises:
        UserError: there is no folder or nothing in it, or a file is broken or has another schema.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = f"a file; write its folder, {folder.parent}" if folder.exists() else "nothing"
        raise UserError(f"{folder}: expected a folder with stored results, found {found}.")
    places = [folder / name for name in SUBFOLDERS]
    decomposition = _first(places, "decomposition.json")
    results = _first(places, "results.json")
    noises = {kind: path for kind in NOISES if (path := _first(places, f"{kind}.json"))}
    fits = [path for place in places for path in sorted(place.glob("p_of_t*.json"))]
    files = [path for path in (decomposition, *noises.values(), *fits, results) if path]
    has_spikes = (folder / "spikes.jsonl").is_file() or any(folder.glob("replays/step-*.json"))
    if not files and not has_spikes:
        of_run = (folder / "run.json").is_file()
        found = "the run.json of one run, which holds its numbers; a report compares runs" if of_run else "none of them"
        raise UserError(
            f"{folder}: expected decomposition.json, {', '.join(f'{kind}.json' for kind in NOISES)}, p_of_t*.json or "
            f"results.json here or in decompose/, fit/ or experiment/, or a run's spikes.jsonl, found {found}."
        )
    return Stored(
        folder,
        read(decomposition, "decomposition") if decomposition else None,
        [read(path, "p_of_t") for path in fits],
        read(results, "results") if results else None,
        [read(path, kind) for kind, path in noises.items()],
        files,
        results.parent if results else None,
        has_spikes,
    )


def _first(places: list[Path], name: str) -> Path | None:
    return next((place / name for place in places if (place / name).is_file()), None)


def read(path: Path, kind: str) -> dict:
    """The content of a file of a kind (``decomposition``, ``p_of_t``, ``results``), with schema and shape checked.

    Raises:
        UserError: it is unreadable, no JSON, has another schema, or a value is missing or of another type.
    """
    return read_one_of(path, [kind])[1]


def read_one_of(path: Path, kinds: Sequence[str]) -> tuple[str, dict]:
    """The kind and the content of a file of one of several kinds, checked as :func:`read` does; raises as it does."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, found {str(error).splitlines()[0]}.") from None
    schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
    by_schema = {f"stabledllm/{kind}/1": kind for kind in kinds}
    if not isinstance(schema, str) or schema not in by_schema:
        raise UserError(f"{path}: expected schema {' or '.join(map(repr, by_schema))}, found {schema!r}.")
    check_shape(path, data, SHAPES[by_schema[schema]])
    return by_schema[schema], data


def base_of(results: dict | None) -> dict:
    """The settings of an experiment's runs, without method and seed; nothing where they are not stored."""
    config = (results or {}).get("config") or {}
    base = config.get("base", config)
    return base if isinstance(base, dict) else {}


def number(value: object) -> float:
    """The number, or NaN for null, a missing value or anything that is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def value(estimate: object) -> float:
    """The value of a stored Estimate (or a plain number), NaN where there is none."""
    return number(estimate.get("value")) if isinstance(estimate, dict) else number(estimate)


def stderr(estimate: object) -> float:
    """The standard error of a stored Estimate, NaN where there is none."""
    return number(estimate.get("stderr")) if isinstance(estimate, dict) else math.nan


def shared_out(parts: dict) -> float:
    """The variance that shares of it are of: the total, or the sum of the components above 0 where that is more.

    An estimate of a component may be below 0, and its share is then 0: of the total the others would make over 100 %.
    """
    return max(value(parts.get("total")), sum(v for key in COMPONENT_LABELS if (v := value(parts.get(key))) > 0))


def array(values: object) -> np.ndarray | None:
    """A stored list as floats (null is NaN); None where it is missing, empty or all null."""
    if not isinstance(values, list) or not values:
        return None
    out = np.array([number(v) for v in values])
    return None if np.isnan(out).all() else out


def diverged_at(run: dict) -> float | None:
    """The step at which a stored run diverged (NaN where none is stored), or None for a run that did not."""
    return number((run.get("diverged") or {}).get("step")) if run.get("status") == "diverged" else None


def standard_first(methods: list[str]) -> list[str]:
    """The distinct methods, Standard first, the others in the order in which they are stored."""
    distinct = list(dict.fromkeys(methods))
    return sorted(distinct, key=lambda m: m != "standard")


def noise_of(data: dict, quantity: str) -> dict[str, dict]:
    """For each method, a decomposition's entry on its noise: in the ``loss``, or in the ``gradient`` where measured."""
    methods = data.get("methods") or []
    if quantity == "loss":
        return {m["method"]: m for m in methods}
    shared = ("method", "unbiased", "views")
    return {
        m["method"]: m["gradient"] | {key: m[key] for key in shared if key in m} for m in methods if m.get("gradient")
    }


def disagrees(entry: dict, by_name: dict[str, dict]) -> bool:
    """Whether a method's measured variance, or Standard's, is not the predicted one; ``by_name`` as above."""
    return any(m.get("agrees_with_prediction") is False for m in (entry, by_name.get("standard") or {}))


def run_methods(results: dict) -> list[str]:
    """Every method of the runs and the summary, Standard first."""
    return standard_first([r["method"] for r in results["runs"]] + [s["method"] for s in results["summary"]])


def reference_runs(results: dict) -> list[dict]:
    """The runs of Standard at other budgets; none where none were asked for."""
    return results.get("reference_runs") or []


def run_metrics(results: dict) -> list[str]:
    """Every metric of the runs, the summary and the untuned model, in stored order."""
    untuned = (results.get("untuned") or {}).get("metrics") or {}
    names = [m for r in results["runs"] for m in r.get("metrics") or {}] + [s["metric"] for s in results["summary"]]
    return list(dict.fromkeys([*names, *untuned]))


def summary_of(results: dict, method: str, metric: str) -> dict:
    """The stored summary of a method and a metric, empty where there is none."""
    rows = results["summary"]
    return next((s for s in rows if s["method"] == method and s["metric"] == metric), {})


def finished_planned(results: dict) -> tuple[int, int | None]:
    """The numbers of finished runs (of the runs in the file where no status is stored) and of planned runs."""
    status = results.get("status") or {}
    finished = status.get("finished")
    return len(results["runs"]) if finished is None else finished, status.get("planned")
