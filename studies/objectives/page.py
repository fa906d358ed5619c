"""Writes the tables, answers and pictures of README.md from results.json.

python -m studies.objectives.page       after a change of words
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from statistics import fmean, stdev

from studies.objectives.answers import (
    AVERAGED,
    METRICS,
    all_versus,
    answers,
    averages,
    diverged,
    parts_of_bound,
    runs_of,
    saved,
    spread,
    values,
)
from studies.objectives.rows import BASE, QUARTERS, ROWS, STANDARD, Row

from stabledllm.experiment.spread import values_of
from stabledllm.experiment.summary import paired, t_interval
from stabledllm.reports import style
from stabledllm.reports.figures.compute_saved import compute_saved
from stabledllm.reports.figures.rates import rate_curves
from stabledllm.reports.rates import range_table
from stabledllm.reports.saved import in_words
from stabledllm.runtime.files import read_json, write_text

HERE = Path(__file__).parent
METRIC = "validation_nll"
PAGE, RESULTS = "README.md", "results.json"
SAVED = ("What each row needs of Standard's forwards", "compute_saved.png")
RATES = ("The final bound over the learning rate", "rates.png")
QUESTIONS = (
    "Is noise a regulariser here?",
    "Does any objective save more compute than less noise does?",
    "Do they add up?",
    "Does anything but the learning rate decide the spread over seeds?",
)


def write_page(folder: Path = HERE) -> None:
    """Draw the pictures of ``results.json`` and fill the page beside it."""
    if not (folder / PAGE).is_file():
        shutil.copy(HERE / PAGE, folder / PAGE)
    results = read_json(folder / RESULTS)
    figures = {SAVED[1]: _saved_figure(results), RATES[1]: rate_curves(results["stability"] or {})}
    for name, figure in figures.items():
        if figure is not None:
            style.save(figure, folder / name, "png")
    text = (folder / PAGE).read_text(encoding="utf-8")
    for name, block in blocks(results).items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, found = re.subn(pattern, lambda m, block=block: f"{m[1]}{block}\n{m[2]}", text, flags=re.S)
        if found != 1:
            raise ValueError(
                f"{folder / PAGE}: expected the marks of the block '{name}' once, found them {found} times"
            )
    write_text(folder / PAGE, text)


def _saved_figure(results: dict):
    entry = saved(results, "validation_nll")
    return compute_saved(entry) if entry else None


def _picture(drawn: object, words: str, file: str) -> str:
    """The line that shows a picture, where something is drawn."""
    return f"\n\n![{words}]({file})" if drawn else ""


def blocks(results: dict) -> dict[str, str]:
    """Every block of the page by its name."""
    return {
        "status": status(results),
        "answers": "\n".join(
            f"{number}. **{question}** {answer}"
            for number, (question, answer) in enumerate(zip(QUESTIONS, answers(results), strict=True), 1)
        ),
        "rows": rows_table(results) + _picture(saved(results, "validation_nll"), *SAVED),
        "quarters": quarters_table(results),
        "windows": windows_table(results),
        "averages": averages_table(results),
        "stability": stability_table(results) + _picture(results["stability"], *RATES),
        "tuning": tuning_table(results),
        "real": real_table(results.get("real") or {"rows": {}}),
    }


def status(results: dict) -> str:
    """What is finished: figures of an unfinished study are not final."""
    done = [row for row in ROWS if row.name in results["rows"]]
    seeds = {sum(run["method"] == row.name for run in runs_of(results)) for row in done}
    told = f"{len(done)} of {len(ROWS)} rows, {_span(seeds)} of {results['seeds']} seeds each"
    if many := sum(map(len, diverged(results).values())):
        told += f", of which {many} diverged and are left out of means, differences and sds"
    stable = "not measured yet"
    if results["stability"]:
        runs = results["stability"]["status"]
        whole = runs["finished"] == runs["planned"]
        stable = "finished" if whole else f"at {runs['finished']} of {runs['planned']} runs"
    where = f" Made on: {results['device']}." if results.get("device") else ""
    duel = {sum(run["method"] == row.name and "duel_nll" in run["metrics"] for run in runs_of(results)) for row in done}
    likelihood = "" if duel == seeds else f" the decoder's likelihood is that of {_span(duel)} seeds each;"
    likelihood = likelihood if any(duel) else " the decoder's likelihood is not measured yet;"
    return f"**Measured: {told};{likelihood} the grid of learning rates is {stable}.**{where}"


def _span(counts: set[int]) -> str:
    least, most = min(counts, default=0), max(counts, default=0)
    return str(least) if least == most else f"{least} to {most}"


def rows_table(results: dict) -> str:
    """Every row's final figures, its difference from Standard and the compute that it saves."""
    differences = {metric: all_versus(results, metric) for metric in METRICS}
    entry = saved(results, "validation_nll")
    shares = {found["method"]: in_words(found) for found in entry["methods"]} if entry else {}
    lines = [
        "| row | rate | seeds | forwards | bound, nats/token | minus Standard's | p, Holm | "
        "needs of Standard's forwards | decoder's NLL minus Standard's | accuracy | minus Standard's | "
        "sd of the bound ÷ Standard's |",
        "|---" * 12 + "|",
    ]
    for row in ROWS:
        own, lost = values(results, row, "validation_nll"), diverged(results).get(row.name, [])
        if not own and not lost:
            continue
        versus = {metric: differences[metric].get(row.name) for metric in METRICS}
        against = versus["validation_nll"]
        cells = [
            f"`{row.name}`", f"{results['rows'][row.name]['learning_rate']:g}",
            f"{len(own)}{f', {len(lost)} diverged' if lost else ''}", _forwards(results, row),
            _mean(own, 4),
            _difference(against), f"{against['p_holm']:.2g}" if against else "", shares.get(row.name, ""),
            _difference(versus["duel_nll"]), _mean(values(results, row, "accuracy"), 3),
            _difference(versus["accuracy"], 3), _ratio(spread(results, row, "validation_nll")) if row != BASE else "1",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def averages_table(results: dict) -> str:
    """The bound of the last weights and of each average of them, mean and sd over seeds."""
    every = runs_of(results)
    names = list(dict.fromkeys(name for run in every for name in run.get("averages") or {}))
    if not names:
        return "Not measured yet."
    lines = [
        f"| row | last weights | {' | '.join(names)} | best average minus Standard's |",
        "|---" * (3 + len(names)) + "|",
    ]
    differences = all_versus(results, AVERAGED)
    for row in ROWS:
        own = averages([run for run in every if run["method"] == row.name])
        if own:
            cells = [_with_sd(values(results, row, "validation_nll")), *(_with_sd(own.get(name, {})) for name in names)]
            lines.append(f"| `{row.name}` | {' | '.join(cells)} | {_difference(differences.get(row.name))} |")
    return "\n".join(lines)


def quarters_table(results: dict) -> str:
    """The parts of the bound from each quarter of the mask ratios: Standard's, and every other row's minus it."""
    plain = parts_of_bound(results, BASE)
    if not plain:
        return "Not measured yet."
    lines = [f"| row | seeds | {' | '.join(QUARTERS)} |", "|---" * (2 + len(QUARTERS)) + "|"]
    if before := results.get("untuned_quarters"):
        lines.append(f"| untuned |  | {' | '.join(f'{part:.4f}' for part in before)} |")
    for row in ROWS:
        own = parts_of_bound(results, row)
        if row != BASE and len(own.keys() & plain.keys()) < 2:
            continue
        cells = []
        for i in range(len(QUARTERS)):
            mine, theirs = ({seed: parts[i] for seed, parts in one.items()} for one in (own, plain))
            cells.append(_mean(mine, 4) if row == BASE else _difference(paired(mine, theirs)))
        lines.append(f"| `{row.name}` | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def windows_table(results: dict) -> str:
    """Standard on the mask ratios from a lowest one up to 1: all of them, from 0.5, and those of the part windows."""
    found = {low: values_of(runs, STANDARD, METRIC) for low, runs in results.get("windows", {}).items()}
    if not any(found.values()):
        return "Not measured yet."
    correct = {low: values_of(runs, STANDARD, "accuracy") for low, runs in results["windows"].items()}
    half = Row("window-generation", STANDARD)
    for low, row in (("0", BASE), ("0.5", half)):
        found[low], correct[low] = values(results, row, METRIC), values(results, row, "accuracy")
    lines = ["| mask ratios from | seeds | bound, nats/token | minus Standard's | accuracy | minus Standard's |"]
    lines.append("|---" * 6 + "|")
    for low in sorted((low for low in found if found[low]), key=float):
        more = ["", ""] if low == "0" else [
            _difference(paired(one[low], one["0"]), places) for one, places in ((found, 4), (correct, 3))
        ]  # fmt: skip
        cells = [low, str(len(found[low])), _mean(found[low], 4), more[0], _mean(correct[low], 3), more[1]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def stability_table(results: dict) -> str:
    """The range of learning rates within 2 % of a method's best."""
    if not results["stability"]:
        return "Not measured yet."
    table = range_table(results["stability"]["rates"])
    lines = [f"| {' | '.join(table.columns)} |", "|---" * len(table.columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table.rows), "", table.note])


def real_table(found: dict) -> str:
    """The rows on the real model: final bound, its difference from Standard's, and the compute that it saves."""
    rows = [row for row in ROWS if values(found, row, METRIC)]
    if not rows:
        return "Not measured yet."
    differences, entry = all_versus(found, METRIC), saved(found, METRIC)
    shares = {one["method"]: in_words(one) for one in entry["methods"]} if entry else {}
    lines = ["| row | seeds | bound, nats/token | minus Standard's | p, Holm | needs of Standard's forwards |"]
    lines.append("|---" * 6 + "|")
    for row in rows:
        own, against = values(found, row, METRIC), differences.get(row.name)
        cells = [
            f"`{row.name}`", str(len(own)), _mean(own, 3), _difference(against, 3),
            f"{against['p_holm']:.2g}" if against else "", shares.get(row.name, ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    before = (found.get("untuned") or {}).get("metrics", {}).get(METRIC)
    told = f"\n\nBefore these steps the bound is {before['value']:.3f}." if before else ""
    return "\n".join(lines) + told


def tuning_table(results: dict) -> str:
    """The final bound of every row at every learning rate that it was tried with."""
    if not results["rates"]:
        return "Not measured yet."
    rates = list(next(iter(results["rates"].values())))
    lines = [f"| row | {' | '.join(rates)} |", "|---" * (1 + len(rates)) + "|"]
    for name, found in results["rates"].items():
        cells = [f"{fmean(nlls):.4f}" if (nlls := found[rate]) else "–" for rate in rates]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _forwards(results: dict, row: Row) -> str:
    """A row's training forwards over Standard's: above 1 where the model chooses the tokens in some of its own."""
    mine, plain = (
        [run["forward_passes"] for run in runs_of(results) if run["method"] == one.name and "forward_passes" in run]
        for one in (row, BASE)
    )
    return f"{fmean(mine) / fmean(plain):.2f}" if mine and plain else ""


def _mean(found: dict[int, float], places: int) -> str:
    if not found:
        return ""
    low, high = t_interval(list(found.values()))
    ends = f" ({low:.{places}f} to {high:.{places}f})" if low is not None else ""
    return f"{fmean(found.values()):.{places}f}{ends}"


def _with_sd(found: dict[int, float]) -> str:
    spread = f" ± {stdev(found.values()):.4f}" if len(found) > 1 else ""
    return f"{fmean(found.values()):.4f}{spread}" if found else "–"


def _difference(found: dict | None, places: int = 4) -> str:
    if not found:
        return ""
    if found["ci_low"] is None:  # of one seed
        return f"{found['difference']:+.{places}f}"
    return f"{found['difference']:+.{places}f} ({found['ci_low']:+.{places}f} to {found['ci_high']:+.{places}f})"


def _ratio(found: dict | None) -> str:
    return f"{found['value']:.2f} ({found['ci_low']:.2f} to {found['ci_high']:.2f})" if found else ""


if __name__ == "__main__":
    write_page()
