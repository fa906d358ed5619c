"""Near-ARM variability: how much an autoregressive model of the same size and task varies over seeds.

    python studies/near_arm/study.py        resumable; about 20 minutes on one core

Writes below runs/near_arm; results.json and the tables of README.md come back here. The masked diffusion model's runs
are those of studies/equal_compute.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import checkpoint

from stabledllm.experiment.spread import sd_interval, sd_ratio
from stabledllm.experiment.summary import t_interval

HERE, OUT = Path(__file__).parent, Path("runs/near_arm")
RATES = ("5e-4", "1e-3", "2e-3", "4e-3")
COMPARED = ("standard", "ppots+mirror", "lowdisc+fixedcount", "lowdisc+adaptive+fixedcount")
KEPT = ("method", "seed", "metrics", "forward_passes", "steps", "seconds")


def main() -> None:
    if not (OUT / "random" / "config.json").is_file():
        checkpoint.write(OUT / "random")
    run("train", HERE / "recipes" / "pretrain.yaml")
    recipe = HERE / "recipes" / "arm.yaml"
    for rate in RATES:
        run("experiment", recipe, "seeds=[1,2,3]", f"base.trainer.learning_rate={rate}", f"out={OUT / f'lr_{rate}'}")
    run("experiment", recipe)
    tuned = {rate: runs_of(OUT / f"lr_{rate}") for rate in RATES}
    pretrained = json.loads((OUT / "pretrained" / "run.json").read_text())
    results = {
        "pretrained": pretrained["metrics"],
        "untuned": json.loads((OUT / "sft" / "results.json").read_text())["untuned"]["metrics"],
        "learning_rates": tuned,
        "runs": runs_of(OUT / "sft"),
        "versions": pretrained["versions"],
        "device": pretrained["device"],
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    page = (HERE / "README.md").read_text()
    head, _, tail = page.partition("<!-- table -->")
    (HERE / "README.md").write_text(head + "<!-- table -->\n" + table(results) + tail[tail.index("<!-- end -->") :])


def run(*command: object) -> None:
    """One of the library's commands, shown as it is."""
    print("$ stabledllm", *command, flush=True)
    subprocess.run([sys.executable, "-m", "stabledllm", *map(str, command)], check=True)


def runs_of(folder: Path) -> list[dict]:
    """The finished runs of an experiment, without their histories."""
    return [{key: r[key] for key in KEPT} for r in json.loads((folder / "results.json").read_text())["runs"]]


def table(results: dict) -> str:
    """Mean and sd over seeds of both kinds of model, and the ratio of sds with its interval."""
    masked = json.loads((HERE.parent / "equal_compute" / "results.json").read_text())["runs"]
    kinds = {"autoregressive": results["runs"]}
    kinds |= {name: [r for r in masked if r["method"] == name] for name in COMPARED}
    lines = [
        "| method | seeds | NLL, mean (95 %) | NLL, sd (95 %) | accuracy, mean (95 %) | accuracy, sd (95 %) | "
        "sd of accuracy / autoregressive |",
        "|---|---|---|---|---|---|---|",
    ]
    baseline = of_metric(results["runs"], "accuracy")
    for name, runs in kinds.items():
        nll, accuracy = of_metric(runs, "validation_nll"), of_metric(runs, "accuracy")
        ratio = "1" if name == "autoregressive" else shown_ratio(accuracy, baseline)
        lines.append(f"| `{name}` | {len(runs)} | {spread(nll, 4)} | {spread(accuracy, 3)} | {ratio} |")
    return "\n".join(lines) + "\n"


def of_metric(runs: list[dict], metric: str) -> dict[int, float]:
    """Seed to value; a diverged run has none."""
    return {r["seed"]: r["metrics"][metric]["value"] for r in runs if metric in r["metrics"]}


def spread(values: dict[int, float], places: int) -> str:
    """Two cells: mean and sd, each with its interval."""
    found = list(values.values())
    mean, (low, high), (least, most) = sum(found) / len(found), t_interval(found), sd_interval(found)
    sd = (sum((v - mean) ** 2 for v in found) / (len(found) - 1)) ** 0.5
    cells = ((mean, low, high), (sd, least, most))
    return " | ".join(f"{v:.{places}f} ({a:.{places}f} to {b:.{places}f})" for v, a, b in cells)


def shown_ratio(values: dict[int, float], other: dict[int, float]) -> str:
    found = sd_ratio(values, other)
    return f"{found['value']:.2f} ({found['ci_low']:.2f} to {found['ci_high']:.2f})"


if __name__ == "__main__":
    main()
