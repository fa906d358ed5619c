"""Text to image in small: six methods x eight seeds at equal compute, and the noise that was predicted of them.

    python studies/images/study.py        resumable; about 45 minutes on 2 cores

Writes below runs/studies; results.json and the tables of README.md come back here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE, OUT = Path(__file__).parent, Path("runs/studies/images")
STEPS = Path("runs/studies/images_steps")
METHODS = ("standard", "ppots", "mirror", "ppots+mirror", "lowdisc", "lowdisc+ppots")
TWO_VIEWS = ("mirror", "ppots+mirror")
MEASURE = ("rows=256", "probe.rows=256", "probe.rates=12", "probe.masks=2", "steps=96", "data.train_rows=1500")
KEPT = ("method", "seed", "metrics", "forward_passes", "steps", "seconds")
METRICS = {"validation_objective": 4, "validation_nll": 4, "accuracy": 3}


def main() -> None:
    recipe = HERE / "compare.yaml"
    run("experiment", recipe, "--jobs", "2")
    same = [f"methods=[standard,{','.join(TWO_VIEWS)}]", "seeds=[1,2,3,4,5,6]", "equal=steps", f"out={STEPS}"]
    run("experiment", recipe, *same, "--jobs", "2")
    for name, model in (("before", "tiny-mmada"), ("after", OUT / "runs" / "standard" / "seed-1" / "model")):
        if not (OUT / name / "decomposition.json").is_file():
            where = ["--model", model, "--data", "scenes", "--methods", ",".join(METHODS), "--out", OUT / name]
            run("decompose", *where, "objective.weighting=cosine", *MEASURE)
    found, steps = (json.loads((folder / "results.json").read_text()) for folder in (OUT, STEPS))
    results = {
        "runs": runs_of(found),
        "summary": found["summary"],
        "equal_steps": {"runs": runs_of(steps), "summary": steps["summary"]},
        "untuned": found["untuned"]["metrics"],
        "noise": {name: noise_of(OUT / name) for name in ("before", "after")},
        "versions": found["versions"],
        "device": found["device"],
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    page = (HERE / "README.md").read_text()
    for name, text in (("table", table(results)), ("steps", table_of_steps(results))):
        head, mark, tail = page.partition(f"<!-- {name} -->")
        page = head + mark + "\n" + text + tail[tail.index("<!-- end -->") :]
    (HERE / "README.md").write_text(page)


def run(*command: object) -> None:
    """One of the library's commands, shown as it is."""
    print("$ stabledllm", *command, flush=True)
    subprocess.run([sys.executable, "-m", "stabledllm", *map(str, command)], check=True)


def runs_of(results: dict) -> list[dict]:
    """The runs without their histories and without what their decoding took."""
    runs = [{key: r[key] for key in KEPT} for r in results["runs"]]
    for r in runs:
        r["metrics"].get("accuracy", {}).pop("decoding_stats", None)  # a diverged run has no metrics
    return runs


def noise_of(folder: Path) -> dict:
    """A, B and C, and each method's predicted noise at equal compute."""
    record = json.loads((folder / "decomposition.json").read_text())
    return {
        "loss": record["loss"],
        "methods": {
            m["method"]: {key: m[key] for key in ("predicted_at_equal_compute", "relative_to_standard")}
            for m in record["methods"]
        },
    }


def table(results: dict) -> str:
    """Each method's noise, predicted over Standard's, and its differences from Standard over the seeds."""
    entries = {(e["method"], e["metric"]): e for e in results["summary"]}
    lines = [
        "| method | noise before / after, over Standard's | trained objective | NLL | accuracy | "
        "accuracy: sd over seeds, over Standard's |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        cells = [difference(entries[method, metric], places) for metric, places in METRICS.items()]
        ratio = entries[method, "accuracy"]["sd_versus_standard"]
        spread = f"{ratio['value']:.2f} ({ratio['ci_low']:.2f} to {ratio['ci_high']:.2f})" if ratio else "1"
        noise = " / ".join(predicted(results["noise"][name]["methods"], method) for name in ("before", "after"))
        lines.append(f"| `{method}` | {noise} | {' | '.join(cells)} | {spread} |")
    return "\n".join(lines) + "\n"


def table_of_steps(results: dict) -> str:
    """As :func:`table`, at equal steps, for the methods of two views."""
    entries = {(e["method"], e["metric"]): e for e in results["equal_steps"]["summary"]}
    lines = ["| method | forwards | trained objective | NLL | accuracy |", "|---|---|---|---|---|"]
    for method in ("standard", *TWO_VIEWS):
        forwards = next(r["forward_passes"] for r in results["equal_steps"]["runs"] if r["method"] == method)
        cells = [difference(entries[method, metric], places) for metric, places in METRICS.items()]
        lines.append(f"| `{method}` | {forwards:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def predicted(methods: dict, method: str) -> str:
    noise, standard = (methods[name]["predicted_at_equal_compute"]["value"] for name in (method, "standard"))
    return f"{noise / standard:.2f}"


def difference(entry: dict, places: int) -> str:
    """The mean; for other methods than Standard the paired difference from it with its 95 % interval."""
    versus = entry["versus_standard"]
    if versus is None:
        return f"{entry['mean']:.{places}f}"
    d, low, high = (versus[key] for key in ("difference", "ci_low", "ci_high"))
    return f"{d:+.{places}f} ({low:+.{places}f} to {high:+.{places}f})"


if __name__ == "__main__":
    main()
