"""Gathers what study.py made into results.json: small, and of unfinished parts what there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from studies.real_model.earlier import SCHEMA, merged
from studies.real_model.parts import FAMILIAR, PRECISIONS, RECORD, ROWS, Study
from studies.real_model.problems import templates_of

from stabledllm.experiment.summary import summarise
from stabledllm.runtime.files import read_json
from stabledllm.stats.estimate import student

STEP = ("step", "loss", "grad_norm")
KEPT = ("method", "seed", "status", "metrics", "forward_passes", "probe_forward_passes", "steps", "seconds")
METHOD = ("relative_to_standard", "predicted_at_equal_compute", "pays")
FAMILIAR_NLL = "familiar_nll"
BANDS = (10, 50, 90)
PARTS = ("models", "adapt", "noise", "finetune")


def gather(study: Study) -> dict:
    """The content of results.json."""
    out = study.out
    record = {
        "schema": SCHEMA,
        "sizes": asdict(study.sizes),
        "unfinished": dict(unfinished(study)),
        "text": _read(out / "text" / "text.json"),
        "plan": {
            "adapt": plan_of(study.run("shift") / "run.json"),
            "finetune": plan_of(out / "finetune" / "compute" / "runs" / "standard" / "seed-1" / "run.json"),
        },
        "conversions": {
            path.parent.name: _read(path) | {"original": study.original.name}
            for path in sorted(out.glob("models/*/stabledllm_conversion.json"))
        },
        "adapt": {arm: found for arm in study.sizes.arms if (found := _adaptation(study.run(arm)))},
        "adapt_versus_shift": _against_shift(out, study.sizes.source),
        "noise": {
            path.parent.name: _noise(_read(path)) for path in sorted(out.glob(f"noise/*/{RECORD}"))
        },
        "precision": precision(out / "noise"),
        "finetune": _finetune(out / "finetune"),
    }  # fmt: skip
    record["bands"] = bands(record["finetune"].get("compute", {}).get("runs", []))
    for name in ("versions", "device"):
        record[name] = next((run[name] for run in record["adapt"].values()), None)
    return merged(record, study.earlier)


def unfinished(study: Study) -> Iterator[tuple[str, list[str]]]:
    """The items of each part that are not done; of a part that needs another first, that it waits."""
    for part in PARTS:
        try:
            left = [item.name for item in study.items(part) if not item.done]
        except FileNotFoundError:
            left = ["all of it"]
        if left:
            yield part, left


def _read(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def plan_of(file: Path) -> dict | None:
    """How much a run trains, once it is finished."""
    if not file.is_file():
        return None
    record = read_json(file)
    config = record["config"]
    plan = {"steps": record["steps"], "batch": config["batch"], "learning_rate": config["trainer"]["learning_rate"]}
    return plan | {"precision": "bfloat16" if config["trainer"].get("bf16") else "float32"}


def _adaptation(run: Path) -> dict | None:
    """An arm's curves and last figures, once it is finished."""
    record = _read(run / "run.json")
    if not record:
        return None
    history = record["history"]
    evaluations = [
        {"step": line["step"], "nll": line["eval_nll"], "stderr": line["eval_nll_stderr"]}
        for line in history
        if "eval_nll" in line
    ]
    untuned = (record.get("untuned") or {}).get("validation_nll")
    if untuned:
        evaluations.insert(0, {"step": 0, "nll": untuned["value"], "stderr": untuned["stderr"]})
    return {
        "evaluations": evaluations,
        "history": [[line.get(name) for name in STEP] for line in history if "loss" in line],
        "metrics": _without_decoding(record["metrics"]),
        **{name: record[name] for name in ("steps", "seconds", "versions", "device")},
    }


def _against_shift(out: Path, source: str) -> dict:
    file = out / "adapt" / ROWS
    return versus_shift(_read(file), templates_of(out / "text", source, "held_out")) if file.is_file() else {}


def versus_shift(found: dict, templates: Sequence[str]) -> dict:
    """The mean NLL of each model, and its difference from ``shift`` over the same rows, with 95 % intervals.

    Args:
        templates: of each row; rows of one are alike.
    """
    rows = {name: np.array(values) for name, values in found.get("rows", {}).items()}
    told = {}
    for name, values in rows.items():
        told[name] = {"mean": float(values.mean()), **_over_templates(values, templates), "n": len(values)}
        if name not in ("shift", "original"):
            difference = values - rows["shift"]
            told[name]["versus_shift"] = {
                "difference": float(difference.mean()),
                **_over_templates(difference, templates),
            }
    return told


def _over_templates(values: np.ndarray, templates: Sequence[str]) -> dict:
    """The 95 % interval of a mean over rows of which those of one template are alike, and how many templates.

    The error is the cluster-robust one (Liang and Zeger, 1986) with Student's quantile for as many templates, less one.
    """
    if len(values) != len(templates):
        raise ValueError(f"expected a value for each of {len(templates)} rows, found {len(values)}")
    kinds, group = np.unique(np.array(templates), return_inverse=True)
    count = len(kinds)
    sums = np.bincount(group, values - values.mean())
    error = math.sqrt(float((sums**2).sum()) * count / (count - 1)) / len(values) if count > 1 else 0.0
    if not error:
        return {"ci_low": None, "ci_high": None, "templates": count}
    half = student(count - 1) * error
    return {"ci_low": float(values.mean()) - half, "ci_high": float(values.mean()) + half, "templates": count}


def _noise(record: dict) -> dict:
    """A, B and C, the curves, the densities and each method's noise at equal compute, of one measurement."""
    return {
        "model": Path(record["model"]).name,
        "rows": record["config"]["rows"],
        "seconds": record["seconds"],
        **{name: record[name] for name in ("loss", "gradient", "curves", "by_length", "mirror")},
        "densities": [
            {"method": d["method"], "t": d["t"][::4], "p": d["p"][::4]} for d in record["densities"]
        ],
        "methods": [
            {"method": m["method"], "views": m["views"]}
            | {name: m.get(name) for name in METHOD}
            | {"gradient": m["gradient"] and {name: m["gradient"].get(name) for name in METHOD[:1]}}
            for m in record["methods"]
        ],
        "recommendation": _advice(record.get("recommendation")),
    }  # fmt: skip


def precision(folder: Path) -> dict | None:
    """What bfloat16 changes in a step's loss and gradient norm: the sd of the differences over the steps' own sd."""
    records = [_read(folder / f"precision-{kind}" / "run.json") for kind in PRECISIONS]
    if not all(records):
        return None
    exact, rounded = (
        np.array([[line["loss"], line["grad_norm"]] for line in r["history"] if "loss" in line]) for r in records
    )
    names = ("loss", "grad_norm")
    difference = rounded - exact
    return {"steps": len(exact)} | {
        name: {
            "largest_relative": float(np.abs(difference[:, i] / exact[:, i]).max()),
            "sd_of_difference_over_sd": float(difference[:, i].std(ddof=1) / exact[:, i].std(ddof=1)),
        }
        for i, name in enumerate(names)
    }


def _finetune(folder: Path) -> dict:
    """The experiments' runs and their statistics; at equal steps those of one view are the runs at equal compute."""
    found = {name: _experiment(folder / name) for name in ("compute", "steps", "original")}
    found = {name: experiment for name, experiment in found.items() if experiment}
    if "steps" in found and "compute" in found:
        same = [run for run in found["compute"]["runs"] if run["method"] in ("standard", "ppots")]
        found["steps"]["summary"] = over_seeds([*same, *found["steps"]["runs"]])
    return found


def _experiment(folder: Path) -> dict | None:
    runs = []
    for path in sorted(folder.glob("runs/*/*/run.json")):
        record = read_json(path)
        run = {name: record.get(name) for name in KEPT}
        run["metrics"] = _without_decoding(record.get("metrics") or {})
        run["metrics"] |= _familiar(path.parent)
        run["history"] = [[line.get(name) for name in STEP] for line in record["history"] if "loss" in line]
        runs.append(run)
    if not runs:
        return None
    runs.sort(key=lambda run: (run["method"] != "standard", run["method"], run["seed"]))
    untuned = _without_decoding(_read(folder / "untuned.json").get("metrics", {})) | _familiar(folder)
    return {"untuned": untuned, "runs": runs, "summary": over_seeds(runs)}


def _familiar(folder: Path) -> dict:
    """The NLL of new rows of the training rows' templates under a model, as a metric; none where it was not taken."""
    found = _read(folder / FAMILIAR)
    return {FAMILIAR_NLL: found["nll"]} if found else {}


def over_seeds(runs: Sequence[dict]) -> list[dict]:
    """The statistics over seeds of the library's metrics, and the same of the NLL that it has no name for."""
    familiar = [
        run | {"metrics": {"validation_nll": run["metrics"][FAMILIAR_NLL]}}
        for run in runs
        if FAMILIAR_NLL in run["metrics"]
    ]
    own = [entry | {"metric": FAMILIAR_NLL} for entry in summarise(familiar, ["standard"])]
    return [*summarise(runs, ["standard"]), *own]


def _without_decoding(metrics: dict) -> dict:
    """Metrics without the time that decoding took."""
    return {
        name: {key: value for key, value in metric.items() if not key.startswith("decoding")}
        for name, metric in metrics.items()
    }


def bands(runs: Sequence[dict]) -> dict:
    """The 10, 50 and 90 % points of the loss and the gradient norm of a step, over steps and seeds, by method."""
    told = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        steps = np.array([line for run in runs if run["method"] == method for line in run["history"]], dtype=float)
        told[method] = {"steps": len(steps)} | {
            name: dict(zip(map(str, BANDS), np.percentile(steps[:, place], BANDS).tolist(), strict=True))
            for place, name in ((1, "loss"), (2, "grad_norm"))
        }
    return told


def _advice(recommendation: dict | None) -> dict | None:
    """What is recommended, without the recipe, which names folders of the machine that measured."""
    return recommendation and {key: value for key, value in recommendation.items() if key != "recipe"}
