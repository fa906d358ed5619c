"""Gathers what study.py made: results.json, the pictures, and the tables between the marks of README.md.

python studies/equal_compute/page.py            everything
python studies/equal_compute/page.py --noise    only the noise, beside the runs that results.json already holds
python studies/equal_compute/page.py --compute  only the compute saved, from the runs of Standard at other budgets
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from analysis import rank_correlation, table_rows, versus
from pictures import MEASURES, differences, predictors

from stabledllm.experiment.compute_saved import compute_saved
from stabledllm.experiment.reference import multiple_of
from stabledllm.experiment.summary import summarise
from stabledllm.reports import figures, style
from stabledllm.reports.saved import saved_metrics, saved_sentences, saved_table
from stabledllm.reports.tables import Table
from stabledllm.runtime.files import read_json, write_json

HERE = Path(__file__).parent
OUT = Path("runs/study")
EXPERIMENTS = {
    "tiny": "Shipped model, 0.92 M parameters; seeds vary the noise and the row order",
    "small": "Smaller model, 0.33 M parameters; seeds vary the noise and the row order",
    "small_noise_only": "Smaller model; seeds vary the noise only",
    "small_equal_steps": "Smaller model; equal steps, so that K views cost K times the compute",
    "gsm8k": "GSM8K's text, shipped model",
}
SHOWN = 3
"""Least number of seeds of a method that is shown."""
KEPT = ("method", "seed", "metrics", "forward_passes", "probe_forward_passes", "steps", "seconds")


def runs_of(name: str) -> list[dict]:
    """Every finished run of an experiment and of the folders that add methods to it.

    Standard's runs at other budgets have the names of their folders, such as ``standard@2x``.
    """
    folders = [OUT / name, *sorted(OUT.glob(f"{name}.*"))]
    paths = [path for folder in folders for path in sorted((folder / "runs").glob("*/*/run.json"))]
    found = [read_json(path) | {"method": path.parent.parent.name} for path in paths]
    kept = [{key: record[key] for key in KEPT} for record in found]
    for record in kept:
        record["metrics"] = {
            metric: {k: v for k, v in value.items() if not k.startswith("decoding")}
            for metric, value in record["metrics"].items()
        }
    return sorted(kept, key=lambda r: (r["method"] != "standard", r["method"], r["seed"]))


def noise_of(name: str) -> dict[str, dict[str, float]]:
    """Measure to method to noise at equal compute over Standard's, the mean of those at start and end (in logs)."""
    out: dict[str, dict[str, float]] = {}
    records = [json.loads(p.read_text()) for p in sorted((OUT / "noise").glob(f"{name}_*/decomposition.json"))]
    for measure in MEASURES:
        ratios = [{m["method"]: r for m in d["methods"] if (r := _ratio(m, measure, d))} for d in records]
        if ratios:
            common = [m for m in ratios[0] if all(r.get(m, 0) > 0 for r in ratios)]
            out[measure] = {m: _geometric([r[m] for r in ratios]) for m in common}
    return out


def _ratio(method: dict, measure: str, record: dict) -> float | None:
    """Predicted for the loss and the gradient, from drawn steps for what clipping and Adam make of it."""
    if not method["unbiased"]:
        return None
    if measure == "loss":
        return (
            method["predicted_at_equal_compute"]["value"] / record["methods"][0]["predicted_at_equal_compute"]["value"]
        )
    part = method.get("gradient") or {}
    part = (part.get(measure) or {}) if measure in ("clipped", "update") else part
    return (part.get("relative_to_standard") or {}).get("value")


def _geometric(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value
    return product ** (1 / len(values))


def main() -> None:
    if "--noise" in sys.argv[1:]:
        noise_alone()
        return
    if "--compute" in sys.argv[1:]:
        compute_alone()
        return
    runs = {name: found for name in EXPERIMENTS if (found := runs_of(name))}
    if "small_equal_steps" in runs:  # one view a row: the same runs at equal steps as at equal compute
        alone = [r for r in runs["small"] if r["method"] in ("standard", "ppots", "lowdisc+fixedcount")]
        runs["small_equal_steps"] = alone + [r for r in runs["small_equal_steps"] if r["method"] != "standard"]
    tables = tables_of(runs)
    noise, found = noise_and_correlation(runs)
    against_paper = {
        name: {
            row["method"]: versus(runs[name], row["method"], "ppots+mirror", "validation_nll")
            for row in rows
            if row["method"] != "ppots+mirror"
        }
        for name, rows in tables.items()
    }
    record = read_json(OUT / "tiny" / "results.json")
    write_json(
        HERE / "results.json",
        {
            "schema": record["schema"],
            "config": record["config"] | {"out": str(OUT / "tiny")},
            "versions": record["versions"],
            "device": record["device"],
            "untuned": record["untuned"],
            "runs": runs["tiny"],
            "summary": summarise(runs["tiny"], ["standard", "clipped"]),
            "experiments": {name: found for name, found in runs.items() if name != "tiny"},
            "versus_paper": against_paper,
            "noise": noise,
            "rank_correlation": found,
        }
        | kept_compute(),
    )
    style.save(differences({EXPERIMENTS[n]: rows for n, rows in tables.items()}), HERE / "differences.png", "png")
    draw_noise(noise, tables, found)
    fill_page({name: results_table(rows) for name, rows in tables.items()} | noise_blocks(noise, found))


def noise_alone() -> None:
    """Measure against the runs that are kept in results.json, and replace what depends on the noise alone."""
    record = read_json(HERE / "results.json")
    runs = {"tiny": record["runs"], **record["experiments"]}
    noise, found = noise_and_correlation(runs)
    write_json(HERE / "results.json", record | {"noise": noise, "rank_correlation": found})
    draw_noise(noise, tables_of(runs), found)
    fill_page(noise_blocks(noise, found))


def compute_alone() -> None:
    """Read the compute saved off the runs of Standard at other budgets, and replace what depends on it."""
    record = read_json(HERE / "results.json")
    stored = {"tiny": record["runs"], "small": []}
    found = {name: saving for name in stored if (saving := saving_of(runs_of(f"compute_{name}"), stored[name]))}
    write_json(HERE / "results.json", record | {"compute_saved": found})
    for name, saving in found.items():
        (entry,) = [one for one in saved_metrics(saving) if one["metric"] == "validation_nll"]
        style.save(figures.compute_saved(entry), HERE / f"compute_saved_{name}.png", "png")
    fill_page({"compute_saved": compute_block(found)})


def saving_of(every: list[dict], stored: list[dict] = ()) -> dict | None:
    """The runs, those of Standard at other budgets apart, and what is read off them; None without such runs.

    Args:
        stored: runs of the same model, rows and seeds, made before; those of methods that are not trained anew are read
            off too, and Standard's are compared with the new ones ("again": Standard anew minus then).
    """
    other = [run for run in every if multiple_of(run["method"]) is not None]
    runs = [run for run in every if multiple_of(run["method"]) is None]
    if not other or not runs:
        return None
    methods, seeds = ({run[key] for run in runs} for key in ("method", "seed"))
    both = runs + [run | {"method": "then"} for run in stored if run["method"] == "standard"]
    again = versus(both, "standard", "then", "validation_nll") if stored else None
    runs += [run for run in stored if run["method"] not in methods and run["seed"] in seeds]
    return {"runs": runs, "reference_runs": other, "compute_saved": compute_saved(runs, other), "again": again}


def kept_compute() -> dict:
    """What results.json holds of it already, since the other parts of the page do not depend on it."""
    path = HERE / "results.json"
    record = read_json(path) if path.is_file() else {}
    return {key: record[key] for key in ("compute_saved",) if key in record}


NOT_MEASURED = "Not measured yet: the stored runs hold Standard at one budget only."


def compute_block(found: dict) -> str:
    """The table and the sentences of each model, or that there are none yet."""
    parts = []
    for name, saving in found.items():
        table = saved_table(saving, "validation_nll")
        parts += [f"{EXPERIMENTS[name]}\n\n{table.text(width=120)}", *saved_sentences(saving)]
        if again := saving.get("again"):
            change = f"{again['difference']:+.4f}"
            if again["ci_low"] is not None:  # of several seeds
                change += f" ({again['ci_low']:+.4f} to {again['ci_high']:+.4f})"
            parts.append(
                f"Standard at its own forwards, trained again beside the other budgets, minus the stored run of the "
                f"same seed, with which the methods' were made: {change}."
            )
    return "\n\n".join(parts) or NOT_MEASURED


def tables_of(runs: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Rows of each experiment's table. A run or three left over from trying a method out say nothing; they stay in
    results.json."""
    return {
        name: [row for row in table_rows(found) if row["validation_nll"]["n"] >= SHOWN] for name, found in runs.items()
    }


def noise_and_correlation(runs: dict[str, list[dict]]) -> tuple[dict, dict]:
    """The noise of both models, and how it orders the methods beside their final NLL."""
    noise = {name: found for name in ("tiny", "small") if name in runs and (found := noise_of(name))}
    return noise, {
        name: {measure: rank_correlation(level, runs[name]) for measure, level in measures.items()}
        for name, measures in noise.items()
    }


def draw_noise(noise: dict, tables: dict, found: dict) -> None:
    if noise:
        style.save(predictors(noise, tables, found), HERE / "predictors.png", "png")


def noise_blocks(noise: dict, found: dict) -> dict[str, str]:
    return {"rank_correlation": correlation_table(found), "noise": noise_table(noise)}


def fill_page(blocks: dict[str, str]) -> None:
    page = HERE / "README.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    page.write_text(filled(text, blocks), encoding="utf-8")


def filled(text: str, blocks: dict[str, str]) -> str:
    """The page with each block between its marks replaced."""
    for name, block in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, block=block: m[1] + "```\n" + block + "\n```\n" + m[2], text, flags=re.S)
    return text


def results_table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        nll, accuracy = row["validation_nll"], row["accuracy"]
        v, a = row["validation_nll_versus_standard"], row["accuracy_versus_standard"]
        ratio = (v or {}).get("sd_ratio")
        lines.append(
            (
                row["method"],
                str(nll["n"]),
                f"{nll['mean']:.4f}",
                f"{nll['sd']:.4f}" if nll["sd"] is not None else "",
                _span(v and v["difference"], v, 4, True),
                _span(ratio and ratio["value"], ratio, 2),
                f"{accuracy['mean']:.3f}" if accuracy else "",
                _span(a and a["difference"], a, 3, True),
            )
        )
    columns = ("method", "seeds", "NLL", "sd", "minus Standard", "sd ratio", "accuracy", "minus Standard")
    return Table("Final validation NLL and accuracy; 95 % intervals", columns, tuple(lines)).text()


def _span(value: float | None, interval: dict | None, places: int, sign: bool = False) -> str:
    if value is None or not interval or interval.get("ci_low") is None:
        return ""
    plus = "+" if sign else ""
    return f"{value:{plus}.{places}f} ({interval['ci_low']:{plus}.{places}f} to {interval['ci_high']:{plus}.{places}f})"


def correlation_table(found: dict) -> str:
    lines = [
        (name, *(_span(r and r["value"], r, 2, True) for r in (measures.get(m) for m in MEASURES)))
        for name, measures in found.items()
    ]
    title = "Spearman's correlation over methods of a noise at equal compute with the final NLL"
    return Table(title, ("experiment", *MEASURES.values()), tuple(lines)).text()


def noise_table(noise: dict) -> str:
    lines = [
        (method, *(f"{noise[name].get(m, {}).get(method, float('nan')):.2f}" for name in noise for m in MEASURES))
        for method in dict.fromkeys(m for measures in noise.values() for level in measures.values() for m in level)
    ]
    columns = ("method", *(f"{name} {title}" for name in noise for title in MEASURES.values()))
    return Table(
        "Noise at equal compute over Standard's, geometric mean of start and end", columns, tuple(lines)
    ).text()


if __name__ == "__main__":
    main()
