"""Do the toy's conclusions hold on a real model? Each from the intervals of two figures, and nothing else.

The toy's figures are those of ``studies/equal_compute`` (final NLL over 20 seeds) and of the shipped model measured
beside the real one. The toy's held-out rows are of its training rows' law; the real model's final NLL is therefore that
of new rows of the training rows' templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from studies.real_model.ends import ends_of
from studies.real_model.results import FAMILIAR_NLL

from stabledllm.runtime.files import read_json

TOY = Path(__file__).parents[1] / "equal_compute" / "results.json"
NLL = "validation_nll"
NOTHING = "not measured yet"


def verdicts_table(results: dict) -> str:
    """The table of every conclusion: what was found on the toy, on the real model, and whether it is the same."""
    head = "| conclusion of the toy | toy | real model | holds? |\n| --- | --- | --- | --- |"
    return "\n".join([head, *("| " + " | ".join(line) + " |" for line in _lines(results))])


def _lines(results: dict) -> Iterator[tuple[str, str, str, str]]:
    yield _dominated(results["noise"])
    for method, claim, side in (
        ("mirror", "MIRROR has more gradient noise at equal compute: over Standard's", 1),
        ("lowdisc+fixedcount", "Low discrepancy with exact counts has less gradient noise: over Standard's", -1),
        ("ppots", "P-POTS has less gradient noise: over Standard's", -1),
    ):
        toy, real = (_noise_ratio(results["noise"].get(name), method) for name in ("toy", "after"))
        yield _compared(claim, toy, real, 1.0, side)
    toy_runs = _nll(read_json(TOY))
    real_runs = _nll(results["finetune"].get("compute"), FAMILIAR_NLL)
    for method, claim, side in (
        ("mirror", "MIRROR at equal compute ends higher than Standard: final NLL minus Standard's", 1),
        ("ppots+mirror", "So does P-POTS+MIRROR", 1),
        ("ppots", "P-POTS ends lower", -1),
        ("lowdisc+fixedcount", "Low discrepancy with exact counts ends lower", -1),
    ):
        toy, real = (_difference(found.get(method)) for found in (toy_runs, real_runs))
        yield _compared(claim, toy, real, 0.0, side, places=4)
    toy_steps = {
        method: _paired_difference(read_json(TOY)["experiments"]["small_equal_steps"], method)
        for method in ("mirror", "ppots+mirror")
    }
    real_steps = _nll(results["finetune"].get("steps"), FAMILIAR_NLL)
    for method, toy in toy_steps.items():
        claim = f"At equal steps, twice the compute, `{method}` ends lower (toy: the smaller model, 5 seeds)"
        yield _compared(claim, toy, _difference(real_steps.get(method)), 0.0, -1, places=4)
    for method in ("ppots+mirror", "lowdisc+fixedcount"):
        claim = f"The paper's claim: the spread over seeds falls, sd of `{method}` over Standard's"
        toy, real = (_spread(found.get(method)) for found in (toy_runs, real_runs))
        yield _compared(claim, toy, real, 1.0, -1)


def _dominated(noise: dict) -> tuple[str, str, str, str]:
    """Whether mask patterns make most of the gradient's noise."""
    claim = "The gradient's noise is mostly mask patterns: A, and B + C"
    toy, real = (_patterns(noise.get(name)) for name in ("toy", "after"))
    told = [found[0] if found else NOTHING for found in (toy, real)]
    return (
        claim,
        *told,
        NOTHING if not toy or not real else _verdict(toy[1], real[1], 1, ("A is smaller", "A is larger")),
    )


def _patterns(record: dict | None) -> tuple[str, int | None] | None:
    """A beside B + C, and which of them is surely larger: the ends of B and of C are added, which is wide."""
    if not record or not record["gradient"]:
        return None
    a, b, c = (record["gradient"][name] for name in ("mask_pattern", "mask_rate", "data"))
    ends = [ends_of(part) for part in (a, b, c)]
    rest = b["value"] + c["value"]
    if any(end is None for pair in ends for end in pair):
        return f"{a['value']:.3g} and {rest:.3g}", None
    (a_low, a_high), (b_low, b_high), (c_low, c_high) = ends
    low, high = b_low + c_low, b_high + c_high
    told = f"{a['value']:.3g} ({a_low:.3g} to {a_high:.3g}) and {rest:.3g} ({low:.3g} to {high:.3g})"
    return told, 1 if a_low > high else -1 if a_high < low else 0


def _noise_ratio(record: dict | None, method: str) -> tuple[float, float | None, float | None] | None:
    entry = next((m for m in (record or {}).get("methods", []) if m["method"] == method), None)
    found = entry and (entry["gradient"] or {}).get("relative_to_standard")
    return (found["value"], found["ci_low"], found["ci_high"]) if found and found["value"] is not None else None


def _nll(experiment: dict | None, metric: str = NLL) -> dict[str, dict]:
    return {e["method"]: e for e in (experiment or {}).get("summary", []) if e["metric"] == metric}


def _difference(entry: dict | None) -> tuple[float, float | None, float | None] | None:
    versus = (entry or {}).get("versus_standard")
    return (versus["difference"], versus["ci_low"], versus["ci_high"]) if versus else None


def _spread(entry: dict | None) -> tuple[float, float | None, float | None] | None:
    found = (entry or {}).get("sd_versus_standard")
    return (found["value"], found["ci_low"], found["ci_high"]) if found else None


def _paired_difference(runs: list[dict], method: str) -> tuple[float, float | None, float | None] | None:
    from stabledllm.experiment.summary import summarise

    return _difference(_nll({"summary": summarise(runs, ["standard"])}).get(method))


def _compared(claim: str, toy, real, at: float, side: int, places: int = 2) -> tuple[str, str, str, str]:
    """A line; ``side``: of ``at``, below (-1) or above (1), where the claim says that the figure lies."""
    told = [_shown(found, places, sign=at == 0) for found in (toy, real)]
    if toy is None or real is None:
        return claim, *told, NOTHING
    return claim, *told, _verdict(_side(toy, at), _side(real, at), side, ("it is lower", "it is higher"))


def _verdict(toy: int | None, real: int | None, side: int, words: tuple[str, str]) -> str:
    """Whether a claim holds on the real model, and on the toy if not there; 0 cannot be told, None has no interval."""
    where = {-1: f"no: {words[0]}", 1: f"no: {words[1]}", 0: "cannot be told", None: "no interval"}
    of_real, of_toy = ("yes" if found == side else where[found] for found in (real, toy))
    return of_real if toy == side else f"{of_real} (on the toy: {of_toy})"


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
