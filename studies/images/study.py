"""Text to image in small: six methods x eight seeds at equal compute, and the noise that was predicted of them.

    python studies/images/study.py        resumable; about 30 minutes on 2 cores

Writes below runs/studies/images; results.json and the table of README.md come back here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE, OUT = Path(__file__).parent, Path("runs/studies/images")
METHODS = ("standard", "ppots", "mirror", "ppots+mirror", "lowdisc", "lowdisc+ppots")
MEASURE = ("rows=256", "probe.rows=256", "probe.rates=12", "probe.masks=2", "steps=96", "data.train_rows=1500")
KEPT = ("method", "seed", "metrics", "forward_passes", "steps", "seconds")
METRICS = {"validation_objective": 4, "validation_nll": 4, "accuracy": 3}


def main() -> None:
    run("experiment", HERE / "compare.yaml", "--jobs", "2")
    for name, model in (("before", "tiny-mmada"), ("after", OUT / "runs" / "standard" / "seed-1" / "model")):
        if not (OUT / name / "decomposition.json").is_file():
            where = ["--model", model, "--data", "scenes", "--methods", ",".join(METHODS), "--out", OUT / name]
            run("decompose", *where, "objective.weighting=cosine", *MEASURE)
    found = json.loads((OUT / "results.json").read_text())
    results = {
        "runs": [{key: r[key] for key in KEPT} for r in found["runs"]],
        "summary": found["summary"],
        "untuned": found["untuned"]["metrics"],
        "noise": {name: noise_of(OUT / name) for name in ("before", "after")},
        "versions": found["versions"],
        "device": found["device"],
    }
    for r in results["runs"]:
        r["metrics"]["accuracy"].pop("decoding_stats")
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    page = (HERE / "README.md").read_text()
    head, _, tail = page.partition("<!-- table -->")
    (HERE / "README.md").write_text(head + "<!-- table -->\n" + table(results) + tail[tail.index("<!-- end -->") :])


def run(*command: object) -> None:
    """One of the library's commands, shown as it is."""
    print("$ stabledllm", *command, flush=True)
    subprocess.run([sys.executable, "-m", "stabledllm", *map(str, command)], check=True)


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
