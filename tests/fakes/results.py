"""Made-up results files of the stored formats; the numbers mean nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

METHODS = [
    "standard", "ppots", "mirror", "ppots+mirror", "strats", "strats+ppots+mirror",
    "clipped", "isad", "syrm", "ema", "multisample", "fixedcount+mirror",
]  # fmt: skip
BIASED = {"clipped", "isad", "syrm"}
VERSIONS = {"stabledllm": "0.1.0", "torch": "2.8.0", "numpy": "2.1.0"}


def est(value: float | None, stderr: float | None = None, n: int = 64, unit: str = "nats²") -> dict:
    return {"value": value, "stderr": stderr, "n": n, "unit": unit}


def parts(a: float, b: float, c: float) -> dict:
    out = {"mask_pattern": est(a, 0.04 * a), "mask_rate": est(b, 0.12 * abs(b)), "data": est(c, 0.25 * abs(c))}
    return out | {"total": est(a + b + c, 0.05), "mean": est(1.31, 0.02, unit="nats")}


def rates(n: int = 40) -> list[float]:
    return [(i + 0.5) / n for i in range(n)]


def profile() -> dict:
    t = rates()
    g = [0.3 + 2.4 * x**2 for x in t]
    v = [1.4 * (1 - x) ** 2 + 0.05 for x in t]
    rho = [-0.6 * math.sin(math.pi * x) for x in t]
    out = {
        "second_moment": [a * a * 1.1 + b for a, b in zip(g, v, strict=True)],
        "g": g,
        "v": v,
        "v_views": [b * (1 + r) / 2 for b, r in zip(v, rho, strict=True)],
        "rho": rho,
    }
    out |= {f"{k}_stderr": [0.03 + 0.05 * abs(x) for x in values] for k, values in out.items()}
    points = [math.sqrt(m) for m in out["second_moment"]]
    points = [len(points) * x / sum(points) for x in points]  # a density over equal cells
    out |= {"width": [1 / len(t)] * len(t), "target": points, "target_stderr": [0.04 * x for x in points]}
    return out | {"t": t}


def decomposition(methods: list[str] | None = None, gradient: bool = True) -> dict:
    methods = METHODS if methods is None else methods
    p = profile()
    curves = {k: p[k] for k in ("t", "g", "g_stderr", "v", "v_stderr", "rho", "rho_stderr")}
    curves |= {"v_mirror": p["v_views"], "v_mirror_stderr": p["v_views_stderr"]}
    grid = rates(256)
    return {
        "schema": "stabledllm/decomposition/1",
        "model": "tiny",
        "data": "synthetic",
        "kind": "mdm",
        "config": {"rows": 64, "rates": 32, "masks": 8},
        "versions": VERSIONS,
        "device": "cpu",
        "seed": 0,
        "seconds": 41.5,
        "forward_passes": 16384,
        "loss": parts(0.488, 0.61, 0.09),
        "gradient": of_gradient() if gradient else None,
        "curves": curves,
        "densities": [
            {"method": m, "source": "stratified" if "strats" in m else "iid", "t": grid, "p": [0.5 + x for x in grid]}
            for m in methods
            if "ppots" in m
        ],
        "by_length": [
            {"tokens": [lo, lo + 31], "n": n}
            | {k: v for k, v in parts(a, 0.6, c).items() if k not in ("total", "mean")}
            for lo, n, a, c in ((1, 20, 0.9, 0.08), (32, 24, 0.5, 0.1), (64, 14, 0.28, -0.03), (96, 6, 0.15, 0.12))
        ],
        "mirror": {"sentence": "MIRROR pays: |ρ| A = 0.31 against B + C = 0.70 (made up)."},
        "methods": [_method(m, i) | ({"gradient": _gradient(m, i)} if gradient else {}) for i, m in enumerate(methods)],
        "recommendation": {"sentences": ["strats needs 0.6 of it (made up)."], "recipe": "method: strats\nbatch: 32"},
        "notes": ["Probe rows come from the training set."],
    }


def of_gradient() -> dict:
    """A, B and C of the gradient, and what A is made of."""
    parts = {k: est(3.1e-6 * x, 2e-7, unit="(nats per unit)²") for k, x in _GRADIENT.items()}
    return parts | {"split": split()}


def split() -> dict:
    """What A of the gradient is made of."""
    parts = {"count": 0.1, "targets": 1.8, "context": 1.2}
    found = {name: est(1e-6 * x, 1e-7, n=24, unit="(nats/param)²") for name, x in parts.items()}
    shares = {f"share_of_{name}": est(x / 3.1, 0.04, n=24, unit="of A") for name, x in parts.items()}
    least = {"least_one_view": 0.47, "least_balanced": 0.21, "least_partition": 0.9}
    return found | shares | {k: est(x, 0.03, n=24, unit="of Standard's") for k, x in least.items()} | {"forwards": 1152}


_GRADIENT = {"mask_pattern": 1.0, "mask_rate": 0.4, "data": 0.5, "total": 1.9}


def _method(name: str, i: int) -> dict:
    ratio = 1 if name == "standard" else 0.5 + 0.13 * i
    return {
        "method": name,
        "views": 2.0 if "mirror" in name else 1.0,
        "unbiased": name not in BIASED,
        "mean": est(1.31, 0.02, unit="nats"),
        "predicted_variance": est(1.1 * ratio, 0.03),
        "measured_variance": est(1.12 * ratio, 0.05),
        "variance_at_equal_compute": est(1.1 * ratio, 0.05),
        "predicted_at_equal_compute": None if name in BIASED else est(1.09 * ratio, 0.03),
        "relative_to_standard": {"value": ratio, "ci_low": ratio * 0.9 if i else 1, "ci_high": ratio * 1.1 if i else 1},
        "pays": None if name == "standard" else ratio < 1,
    }


def _gradient(name: str, i: int) -> dict:
    loss, unit = _method(name, i), "(nats/param)²"
    kept = ("variance_at_equal_compute", "predicted_at_equal_compute", "relative_to_standard")
    return {key: loss[key] for key in kept} | {
        "noise_scale": est(400.0 + i, 20, unit="rows"),
        "pareto_k": 0.4 + 0.05 * i,
        "clipped": {"relative_to_standard": {"value": 0.91 + 0.01 * i}, "noise": est(2.0, 0.1, unit=unit)},
        "update": {"relative_to_standard": {"value": 0.81 + 0.01 * i}, "noise": est(2.0, 0.1, unit=unit)},
    }


def p_of_t(method: str = "ppots", fallback: str | None = None) -> dict:
    cells = rates(4096)
    raw = [math.sqrt((0.3 + 2.4 * x**2) ** 2 * 1.1 + 1.4 * (1 - x) ** 2 + 0.05) for x in cells]
    mean = sum(raw) / len(raw)
    return {
        "schema": "stabledllm/p_of_t/1",
        "method": method,
        "source": "stratified" if "strats" in method else "iid",
        "kind": "tabulated" if fallback else "epr",
        "parameters": {"a": 1.3, "b": 0.7, "A": 0.2, "kappa": 1.9, "r": 2.0, "q": 1.4, "m": 2.2},
        "density": [0.05 + 0.95 * x / mean for x in raw],
        "uniform_share": 0.05,
        "diagnostics": {
            "kl": 0.0021,
            "kl_threshold": 0.01,
            "relative_ess": 0.87,
            "pareto_k": 0.31,
            "variance_uniform": est(1.19, 0.05),
            "variance_fitted": est(0.82, 0.04),
            "fallback": fallback,
        },
        "profile": profile(),
        "forward_passes": 15750,
        "config": {"moment": "second_moment"},
    }


def results(methods: list[str], seeds: int, planned: int | None = None, history: bool = True) -> dict:
    draw = random.Random(0)
    runs = [_run(m, i, s, draw, history) for i, m in enumerate(methods) for s in range(seeds)]
    summary = [_summary(runs, m, metric) for m in methods for metric in ("validation_nll", "accuracy") if seeds]
    return {
        "schema": "stabledllm/results/1",
        "config": {"model": "tiny", "data": "synthetic", "methods": methods},
        "versions": VERSIONS,
        "device": "cpu",
        "status": {"finished": len(runs), "planned": planned or len(runs)},
        "untuned": {
            "metrics": {"validation_nll": est(0.93, 0.02, unit="nats/token"), "accuracy": est(0.11, 0.02, unit="")}
        },
        "runs": runs,
        "summary": summary,
        "notes": [],
    }


def _run(method: str, i: int, seed: int, draw: random.Random, history: bool) -> dict:
    nll, accuracy = 0.55 - 0.01 * i + draw.gauss(0, 0.012), 0.41 + 0.012 * i + draw.gauss(0, 0.02)
    log = []
    for step in range(10, 1001, 10):
        entry = {"step": step, "loss": 0.5 + 1.5 * math.exp(-step / 150) + draw.gauss(0, 0.2), "grad_norm": 1.0}
        if step % 200 == 0:
            entry |= {"eval_nll": nll + 0.5 * math.exp(-step / 200), "eval_nll_stderr": 0.01}
        log.append(entry)
    return {
        "method": method,
        "seed": seed,
        "metrics": {"validation_nll": est(nll, 0.008, 512, "nats/token"), "accuracy": est(accuracy, 0.02, 512, "")},
        "forward_passes": 64000 if "mirror" in method else 32000,
        "steps": 1000,
        "seconds": 340.0 + 10 * i + seed,
        "history": log if history else [],
    }


def _summary(runs: list[dict], method: str, metric: str) -> dict:
    """Like the stored summary; the intervals are made up except that they are wide for few seeds."""
    values = [r["metrics"][metric]["value"] for r in runs if r["method"] == method]
    base = [r["metrics"][metric]["value"] for r in runs if r["method"] == "standard"]
    n, mean = len(values), sum(values) / len(values)
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    half = {2: 12.7, 3: 4.3, 4: 3.2, 5: 2.8}.get(n, 2.0) * sd / math.sqrt(n) if sd is not None else None
    d = mean - sum(base) / len(base) if base else 0
    versus = (
        {"difference": d, "ci_low": d - half, "ci_high": d + half, "p_value": 0.01 if abs(d) > half else 0.4}
        if sd
        else None
    )
    return {
        "method": method,
        "metric": metric,
        "n": n,
        "mean": mean,
        "sd": sd,
        "ci_low": mean - half if sd else None,
        "ci_high": mean + half if sd else None,
        "versus_standard": None if method == "standard" else versus,
        "worst_beats_best_baseline": None if method == "standard" or n < 2 else max(values) < min(base),
    }


def put(folder: Path, name: str, data: dict) -> Path:
    """Write a results file where the commands write it."""
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def put_all(folder: Path, methods: list[str] = METHODS, seeds: int = 5) -> Path:
    """A folder with everything."""
    put(folder, "decompose/decomposition.json", decomposition(methods))
    put(folder, "fit/p_of_t.json", p_of_t("ppots"))
    put(
        folder,
        "fit/p_of_t_ppots+mirror.json",
        p_of_t("strats+ppots+mirror", "EPR does not fit these points (made up)."),
    )
    put(folder, "experiment/results.json", results(methods, seeds))
    return Path(folder)


def _noise(kind: str, names: dict[str, tuple[float, ...]], rows: list[str]) -> dict:
    """A record of noise: for each name its ratios to Standard's, of the kind's quantity, the loss and the gradient."""
    first, quantity, more = {
        "dpo": ("preference_noise", "margin", ()),
        "grpo": ("policy_noise", "log_ratio", ("direction", "offset", "size")),
    }[kind]
    methods = []
    for name in rows:
        over = dict(zip((quantity, "loss", "gradient"), names[name], strict=True))
        methods.append(
            {"name": name, "forwards": 6, "multiple": 1, "between": 0.5, "p_holm": {"loss": 0.4, "gradient": 0.3}}
            | {key: est(0.2 * ratio, 0.02, 12, "") for key, ratio in over.items()}
            | {key: est(0.9, 0.1, 12, "") for key in ("bias", "value", *more)}
            | {
                "over_standard": {
                    key: {"value": ratio, "ci_low": 0.8 * ratio, "ci_high": 1.3 * ratio} for key, ratio in over.items()
                }
            }
        )
    return {
        "schema": f"stabledllm/{first}/1",
        "objective": kind,
        "model": "runs/moved",
        "start": "tiny",
        "data": "synthetic:4-4",
        "pairs" if kind == "dpo" else "prompts": 12,
        "recipe": {"data": {}, "objective": {}},
        "config": {"seed": 0},
        "versions": VERSIONS,
        "seconds": 12.0,
        "device": "cpu",
        "sentences": ["No method's gradient noise is told apart from Standard's. Stay with standard."],
        "methods": methods,
    }


def preference_noise() -> dict:
    ratios = {
        "standard": (1.0, 1.0, 1.0),
        "standard, draws not shared": (7740.0, 11400.0, 2.95),
        "mirror": (0.8, 0.8, 1.1),
    }
    return _noise("dpo", ratios, list(ratios))


def policy_noise() -> dict:
    ratios = {"standard": (1.0, 1.0, 1.0), "standard, draws not shared": (678.0, 2070.0, 1.6), "espo": (0.9, 0.9, 0.62)}
    return _noise("grpo", ratios, list(ratios))
