"""Do the toy's conclusions hold on a real model? Each from two figures with their intervals, and nothing else.

The toy's figures are those of ``studies/equal_compute`` (final NLL over 20 seeds) and of the shipped model measured
beside the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stabledllm.runtime.files import read_json

TOY = Path(__file__).parents[1] / "equal_compute" / "results.json"
NOTHING = "not measured yet"


def verdicts_table(results: dict) -> str:
    """The table of every conclusion: what was found on the toy, on the real model, and whether it is the same."""
    head = "| conclusion of the toy | toy | real model | holds? |\n| --- | --- | --- | --- |"
    return "\n".join([head, *("| " + " | ".join(line) + " |" for line in _lines(results))])


def _lines(results: dict) -> Iterator[tuple[str, str, str, str]]:
    yield _dominated(results["noise"])
    for method, claim in {
        "mirror": "MIRROR does not pay: gradient noise at equal compute, over Standard's",
        "lowdisc+fixedcount": "Low discrepancy with exact counts: gradient noise at equal compute, over Standard's",
        "ppots": "P-POTS: gradient noise at equal compute, over Standard's",
    }.items():
        toy, real = (_noise_ratio(results["noise"].get(name), method) for name in ("toy", "after"))
        yield _compared(claim, toy, real, 1.0)
    toy_runs = {e["method"]: e for e in read_json(TOY)["summary"] if e["metric"] == "validation_nll"}
    real_runs = _nll(results["finetune"].get("compute"))
    for method, claim in {
        "mirror": "MIRROR at equal compute ends higher than Standard: final NLL minus Standard's",
        "ppots+mirror": "So does P-POTS+MIRROR",
        "ppots": "P-POTS ends lower",
        "lowdisc+fixedcount": "Low discrepancy with exact counts ends lower",
    }.items():
        toy, real = (_difference(found.get(method)) for found in (toy_runs, real_runs))
        yield _compared(claim, toy, real, 0.0, places=4)
    toy_steps = {
        method: _paired_difference(read_json(TOY)["experiments"]["small_equal_steps"], method)
        for method in ("mirror", "ppots+mirror")
    }
    real_steps = _nll(results["finetune"].get("steps"))
    for method, toy in toy_steps.items():
        claim = f"At equal steps, twice the compute, `{method}` ends lower (toy: the smaller model, 5 seeds)"
        yield _compared(claim, toy, _difference(real_steps.get(method)), 0.0, places=4)
    for method in ("ppots+mirror", "lowdisc+fixedcount"):
        claim = f"The spread over seeds does not fall: sd of `{method}` over Standard's"
        toy, real = (_spread(found.get(method)) for found in (toy_runs, real_runs))
        yield _compared(claim, toy, real, 1.0)


def _dominated(noise: dict) -> tuple[str, str, str, str]:
    """Whether mask patterns make most of the gradient's noise."""
    claim = "The gradient's noise is mask patterns: A and B + C of it"
    toy, real = (_patterns(noise.get(name)) for name in ("toy", "after"))
    if not toy or not real:
        return claim, toy[0] if toy else NOTHING, real[0] if real else NOTHING, NOTHING
    return claim, toy[0], real[0], "yes" if real[1] == toy[1] == 1 else "no" if real[1] == -1 else "cannot be told"


def _patterns(record: dict | None) -> tuple[str, int] | None:
    """A beside B + C, and which of them is surely larger."""
    if not record or not record["gradient"]:
        return None
    a, b, c = (record["gradient"][name] for name in ("mask_pattern", "mask_rate", "data"))
    rest = b["value"] + c["value"]
    error = (b["stderr"] ** 2 + c["stderr"] ** 2) ** 0.5
    low, high = rest - 1.96 * error, rest + 1.96 * error
    told = f"{a['value']:.3g} ({a['ci_low']:.3g} to {a['ci_high']:.3g}) and {rest:.3g} ({low:.3g} to {high:.3g})"
    return told, 1 if a["ci_low"] > high else -1 if a["ci_high"] < low else 0


def _noise_ratio(record: dict | None, method: str) -> tuple[float, float | None, float | None] | None:
    entry = next((m for m in (record or {}).get("methods", []) if m["method"] == method), None)
    found = entry and (entry["gradient"] or {}).get("relative_to_standard")
    return (found["value"], found["ci_low"], found["ci_high"]) if found and found["value"] is not None else None


def _nll(experiment: dict | None) -> dict[str, dict]:
    return {e["method"]: e for e in (experiment or {}).get("summary", []) if e["metric"] == "validation_nll"}


def _difference(entry: dict | None) -> tuple[float, float | None, float | None] | None:
    versus = (entry or {}).get("versus_standard")
    return (versus["difference"], versus["ci_low"], versus["ci_high"]) if versus else None


def _spread(entry: dict | None) -> tuple[float, float | None, float | None] | None:
    found = (entry or {}).get("sd_versus_standard")
    return (found["value"], found["ci_low"], found["ci_high"]) if found else None


def _paired_difference(runs: list[dict], method: str) -> tuple[float, float | None, float | None] | None:
    from stabledllm.experiment.summary import summarise

    return _difference(_nll({"summary": summarise(runs, ["standard"])}).get(method))


def _compared(claim: str, toy, real, at: float, places: int = 2) -> tuple[str, str, str, str]:
    """A line: the same if both intervals lie on the same side of ``at``; open where the real one includes it."""
    told = [_shown(found, places, sign=at == 0) for found in (toy, real)]
    if toy is None or real is None:
        return claim, *told, NOTHING
    sides = [_side(found, at) for found in (toy, real)]
    if None in sides:
        return claim, *told, "cannot be told from one seed"
    if sides[0] == sides[1]:
        return claim, *told, "yes" if sides[0] else "neither tells a difference"
    if sides[1] == 0:
        return claim, *told, f"cannot be told: the real one's interval holds {at:g}"
    where = "lower" if sides[1] < 0 else "higher"
    if sides[0] == 0:
        return claim, *told, f"surely {where} on the real model; the toy's interval holds {at:g}"
    return claim, *told, f"no: {where} on the real model"


def _side(found: tuple, at: float) -> int | None:
    """-1 where the whole interval lies below ``at``, 1 above, 0 across, None without one."""
    _, low, high = found
    if low is None or high is None:
        return None
    return 1 if low > at else -1 if high < at else 0


def _shown(found: tuple | None, places: int, *, sign: bool) -> str:
    if found is None:
        return NOTHING
    value, low, high = found
    form = f"{'+' if sign else ''}.{places}f"
    return f"{value:{form}}" + ("" if low is None or high is None else f" ({low:{form}} to {high:{form}})")
