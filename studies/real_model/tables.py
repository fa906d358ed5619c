"""The tables of the study's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from studies.real_model.ends import ends_of
from studies.real_model.pictures import AGAIN, ARMS
from studies.real_model.results import FAMILIAR_NLL

COMPONENTS = {"mask_pattern": "A mask pattern", "mask_rate": "B mask rate", "data": "C data"}
MEASURED = {
    "before": "converted, before adaptation",
    "after": "after adaptation",
    "original": "the original, autoregressive",
    "toy": "the shipped toy",
    "before-short": "before, shorter responses",
    "before-long": "before, longer responses",
    "after-short": "after, shorter responses",
    "after-long": "after, longer responses",
}
NOTHING = "Not measured yet."


def text_table(text: dict) -> str:
    """The rows that were drawn, dropped and kept."""
    if not text:
        return NOTHING
    head = (
        "file",
        "split of templates",
        "rows",
        "templates",
        "drawn",
        f"dropped, over {text['longest']} tokens",
        "mean tokens",
    )
    lines = [
        (name, f["split"], f["rows"], f["templates"], f["drawn"], f["longer"], f["mean_tokens"])
        for name, f in text["files"].items()
    ]
    return markdown(head, lines)


def plan_line(plan: dict | None, text: dict, file: str) -> str:
    """How much is trained."""
    if not plan:
        return NOTHING
    rows = text["files"][file]["rows"]
    epochs = plan["steps"] * plan["batch"] / rows
    passes = f"{epochs:.3g} {'epoch' if epochs == 1 else 'epochs'}"
    return (
        f"{plan['steps']} steps of {plan['batch']} forward rows over {rows} rows ({passes}), learning rate "
        f"{plan['learning_rate']:g}, computed in {plan['precision']}."
    )


def adaptation_table(results: dict) -> str:
    """Each arm's NLL over the steps, and its difference from the default over the same rows."""
    if not results["adapt"]:
        return NOTHING
    steps = sorted({e["step"] for run in results["adapt"].values() for e in run["evaluations"]})
    lines = []
    again = results.get("adapted_again", {})
    runs = [(arm, run, ARMS[arm]) for arm, run in results["adapt"].items()]
    for arm, run, name in [*runs, *((None, run, AGAIN.format(ARMS[arm])) for arm, run in again.items())]:
        at = {e["step"]: f"{e['nll']:.3f}" for e in run["evaluations"]}
        found = results["adapt_versus_shift"].get(arm, {}).get("versus_shift")
        accuracy = run["metrics"].get("accuracy")
        against = interval(found, "difference", 3, sign=True) if found else "–"
        lines.append((name, *(at.get(step, "–") for step in steps), against, share(accuracy)))
    return markdown(("arm", *(f"step {step}" for step in steps), "last, minus the default's", "accuracy"), lines)


def precision_line(found: dict | None) -> str:
    """What computing in bfloat16 changes in the noise."""
    if not found:
        return NOTHING
    told = []
    for key, name in (("loss", "the loss of a step"), ("grad_norm", "its gradient norm")):
        largest, share = found[key]["largest_relative"], found[key]["sd_of_difference_over_sd"]
        told.append(f"{name} by at most {largest:.2%} of its value, and by {share:.2%} of its spread from step to step")
    return f"In {found['steps']} steps of the same weights and noise bfloat16 changes {'; '.join(told)}."


def components_table(found: dict) -> str:
    """A, B and C of the loss and of the gradient."""
    lines = []
    for name in MEASURED:
        if (record := found.get(name)) and "-" not in name:
            lines.append((MEASURED[name], *components(record["loss"]), *components(record["gradient"])))
    head = [f"{of}: {part}" for of in ("loss", "gradient") for part in (*COMPONENTS.values(), "A's share")]
    return markdown(("model", *head), lines) if lines else NOTHING


def components(parts: dict | None) -> list[str]:
    """The cells of A, B, C with their intervals, and the share of A in the total."""
    if not parts:
        return ["–"] * 4
    total = sum(part["value"] for name in COMPONENTS if (part := parts.get(name)))
    cells = [interval(parts.get(name)) for name in COMPONENTS]
    pattern = parts.get("mask_pattern")
    return [*cells, f"{pattern['value'] / total:.0%}" if pattern and total > 0 else "0 %"]


def lengths_table(found: dict) -> str:
    """A, B and C by response length: of the loss in thirds of the rows, of the gradient in halves."""
    lines = []
    for name, told in MEASURED.items():
        record = found.get(name)
        if record and "-" in name:
            lines.append((told, "", *components(record["loss"])[:3], *components(record["gradient"])[:3]))
        elif record and name != "toy":
            for group in record["by_length"]:
                tokens = "{} to {}".format(*group["tokens"])
                lines.append((told, tokens, *components(group)[:3], "–", "–", "–"))
    head = [f"{of}: {part}" for of in ("loss", "gradient") for part in COMPONENTS.values()]
    return markdown(("model, rows", "tokens", *head), lines) if lines else NOTHING


def methods_table(found: dict) -> str:
    """Each method's noise at equal compute over Standard's."""
    shown = [name for name in ("before", "after", "toy") if name in found]
    methods = list(dict.fromkeys(m["method"] for name in shown for m in found[name]["methods"]))
    lines = []
    for method in methods:
        cells = [f"`{method}`"]
        for name in shown:
            entry = next((m for m in found[name]["methods"] if m["method"] == method), {})
            cells += [
                interval(entry.get("relative_to_standard")),
                interval((entry.get("gradient") or {}).get("relative_to_standard")),
            ]
        lines.append(cells)
    head = [f"{MEASURED[name]}: {of}" for name in shown for of in ("loss", "gradient")]
    return markdown(("method", *head), lines) if lines else NOTHING


def recommendations(found: dict) -> str:
    """What ``stabledllm recommend`` says of each model."""
    told = [
        f"- **{MEASURED[name]}**: {' '.join(found[name]['recommendation']['sentences'])}"
        for name in ("before", "after", "toy")
        if name in found and found[name]["recommendation"]
    ]
    return "\n".join(told) or NOTHING


def experiment_table(experiment: dict | None, original: dict | None) -> str:
    """Final NLL and accuracy of every method, the untuned model, and the autoregressive one in its own terms."""
    if not experiment:
        return NOTHING
    lines = [untuned_line("untuned, as adapted", experiment), *method_lines(experiment)]
    if original:
        lines += [untuned_line("autoregressive, untuned *", original), *method_lines(original, " *")]
    head = (
        "method",
        "seeds",
        "forwards",
        "probe's",
        "NLL, held-out templates",
        "minus Standard",
        "sd over seeds",
        "sd, over Standard's",
        "NLL, new rows of the training templates",
        "minus Standard",
        "sd, over Standard's",
        "accuracy",
        "minus Standard",
    )
    return markdown(head, lines)


def untuned_line(name: str, experiment: dict) -> Sequence[object]:
    """The line of the model that an experiment starts from."""
    found = experiment["untuned"]
    nll, familiar = (interval(found.get(metric), places=4) for metric in ("validation_nll", FAMILIAR_NLL))
    return (name, "", 0, "", nll, "", "", "", familiar, "", "", share(found.get("accuracy")), "")


def method_lines(experiment: dict, mark: str = "") -> Iterable[Sequence[object]]:
    """One line a method."""
    entries = {(e["method"], e["metric"]): e for e in experiment["summary"]}
    for method in dict.fromkeys(e["method"] for e in experiment["summary"]):
        nll, familiar, accuracy = (entries.get((method, of)) for of in ("validation_nll", FAMILIAR_NLL, "accuracy"))
        forwards, probes = (
            [run[of] or 0 for run in experiment["runs"] if run["method"] == method]
            for of in ("forward_passes", "probe_forward_passes")
        )
        yield (
            f"`{method}`{mark}",
            nll["n"],
            f"{round(sum(forwards) / len(forwards))}" if forwards else "as above",
            max(probes) if probes else "as above",
            *_mean_and_difference(nll, 4),
            interval(spread_of(nll), places=4),
            _spread_over_standard(nll),
            *_mean_and_difference(familiar, 4, nll["n"]),
            _spread_over_standard(familiar),
            *_mean_and_difference(accuracy, 3),
        )


def _mean_and_difference(entry: dict | None, places: int, seeds: int | None = None) -> tuple[str, str]:
    """A metric's mean, with its seeds where they are not so many, and its difference from Standard's."""
    if not entry:
        return "", ""
    mean, versus = interval(entry, "mean", places), entry["versus_standard"]
    mean += f", {entry['n']} seeds" if seeds not in (None, entry["n"]) else ""
    return mean, interval(versus, "difference", places, sign=True) if versus else ""


def _spread_over_standard(entry: dict | None) -> str:
    return interval(spread) if entry and (spread := entry["sd_versus_standard"]) else ""


def spread_of(entry: dict) -> dict:
    """The standard deviation over seeds as a value with its interval."""
    return {"value": entry["sd"], "ci_low": entry["sd_ci_low"], "ci_high": entry["sd_ci_high"]}


def bands_table(found: dict) -> str:
    """10, 50 and 90 % of a step's loss and gradient norm, by method."""
    lines = [
        (
            f"`{method}`",
            band["steps"],
            *(f"{band[of][at]:.2f}" for of in ("loss", "grad_norm") for at in ("10", "50", "90")),
        )
        for method, band in found.items()
    ]
    head = [f"{of}: {at} %" for of in ("loss", "gradient norm") for at in (10, 50, 90)]
    return markdown(("method", "steps", *head), lines) if lines else NOTHING


def interval(found: dict | None, key: str = "value", places: int = 2, *, sign: bool = False) -> str:
    """A value with its 95 % interval, where it has one."""
    if not found or found.get(key) is None:
        return "–"
    form = f"{'+' if sign else ''}.{places}f" if abs(found[key]) < 1000 else ".3g"
    low, high = ends_of(found)
    around = "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
    return f"{found[key]:{form}}{around}"


def share(accuracy: dict | None) -> str:
    """An accuracy with its interval and the number of problems."""
    return f"{interval(accuracy)}, n={accuracy['n']}" if accuracy else "–"


def markdown(head: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    """A table of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
