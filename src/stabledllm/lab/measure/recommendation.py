"""The recommendation of a method from measured noise at equal compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from stabledllm.errors import UserError
from stabledllm.noise.parts import FOLLOWED, PARTS
from stabledllm.stats.estimate import student
from stabledllm.stats.intervals import Ratio

QUANTITIES = ("gradient", "loss")
_WITHOUT_PROBE = {fitted: follows for follows, fitted in FOLLOWED.items()}
"""For each fitted density that training can reach without a probe, the part that follows it."""
PROBED = [part.name for part in PARTS.values() if part.fitted_to and part.name not in _WITHOUT_PROBE]
"""Names of the parts whose density costs a probe before training."""


@dataclass(frozen=True)
class Recommendation:
    """The method to train with, and why. ``significant`` is False where none is surely less noisy than Standard."""

    method: str
    measured_as: str
    """The method that was measured, which has ``ppots`` where ``method`` has ``adaptive``."""
    views: float
    ratio: float
    """Its noise at equal compute over Standard's, with a 95 % interval."""
    ci_low: float
    ci_high: float
    significant: bool
    quantity: str
    """The quantity whose noise was compared: ``gradient`` or ``loss``."""
    best: str
    """The method with the least noise, not ``method`` where a simpler one is not surely noisier."""
    sentences: tuple[str, ...]
    recipe: str

    def as_dict(self) -> dict:
        """JSON form."""
        return self.__dict__ | {"sentences": list(self.sentences)}


def choose(
    record: dict,
    quantity: str | None,
    named: Callable[[str], str],
    lines: Callable[[dict, str, float, int], str],
) -> Recommendation:
    """Recommend the simplest unbiased method whose noise is surely below Standard's and not surely above the least.

    Simplest means no probe before training, then fewer views, and among those the least predicted noise of the loss,
    since sources of t and counts cost nothing. ``ppots`` counts as free: ``adaptive`` reaches that density without a
    probe. "Not surely above" means that its ratio lies within the interval of the best one's. A biased method trains
    another objective and is never named, nor by the loss one whose measured variance, or Standard's, is not the
    predicted one.

    Args:
        record: ``decomposition.json``. quantity: ``gradient`` (the default where it was measured) or ``loss``.
        named: what the measured method is called where it is to be used.
        lines: from the record, that name, its views and the step's forward passes to the lines to paste.

    Raises:
        UserError: the record holds no measurement of that quantity, or no Standard; or an autoregressive model's.
    """
    if record.get("kind") == "arm":
        raise UserError(
            "recommend: expected a masked diffusion model's decomposition, found an autoregressive model's, which has "
            "no mask noise to lower."
        )
    measured = [m for m in record["methods"] if m["unbiased"] and _ratio(m, quantity or "gradient")]
    if quantity is None and len(measured) < 2:
        return choose(record, "loss", named, lines)
    quantity = quantity or "gradient"
    if len(measured) < 2 or not any(m["method"] == "standard" for m in measured):
        raise _nothing_to_compare(record, measured, quantity)
    against = _contradicted(record, quantity)
    others = [m for m in measured if m["method"] != "standard"]
    best = min((m for m in others if m["method"] not in against), key=lambda m: _ratio(m, quantity).value, default=None)
    sure = [] if best is None else _surely_as_good(others, best, against, quantity)
    chosen = min(sure, key=lambda m: _simplicity(m, quantity)) if sure else _standard(measured)
    forwards = record["config"]["forwards"]
    ratio, name = _ratio(chosen, quantity), named(chosen["method"])
    return Recommendation(
        method=name,
        measured_as=chosen["method"],
        views=chosen["views"],
        ratio=ratio.value,
        ci_low=ratio.ci_low,
        ci_high=ratio.ci_high,
        significant=bool(sure),
        quantity=quantity,
        best=(best or chosen)["method"],
        sentences=tuple(_sentences(record, chosen, name, best, bool(sure), quantity, forwards)),
        recipe=lines(record, name, chosen["views"], forwards),
    )


def _nothing_to_compare(record: dict, measured: Sequence[dict], quantity: str) -> UserError:
    """The refusal of a record in which no method's ratio to Standard's noise has an interval."""
    of_gradient = quantity == "gradient"
    unbiased = [m for m in record["methods"] if m["unbiased"] and (m.get("gradient") or not of_gradient)]
    run = f"run 'stabledllm decompose{' --gradient' * of_gradient}'"
    if len(unbiased) > len(measured) and any(m["method"] == "standard" for m in unbiased):
        sizes = "grad.rows and grad.steps" if of_gradient else "rows and steps"
        run = f"so few draws tell no interval: {run} with more {sizes}, such as its defaults"
    return UserError(
        f"recommend: expected Standard and another unbiased method with an interval of the {quantity}'s noise, "
        f"found {len(measured)} method(s); {run}."
    )


def is_comparable(record: dict) -> bool:
    """Whether the noise of Standard and of another unbiased method has an interval, so that one can be recommended."""
    comparable = [m["method"] for m in record["methods"] if m["unbiased"] and any(_ratio(m, q) for q in QUANTITIES)]
    return "standard" in comparable and len(comparable) > 1


def without_probe(method: str) -> str:
    """The method with ``adaptive`` in the place of ``ppots``."""
    return "+".join(_WITHOUT_PROBE.get(part, part) for part in method.split("+"))


def _surely_as_good(others: Sequence[dict], best: dict, against: Collection[str], quantity: str) -> list[dict]:
    """The methods that are surely below Standard and not surely above the best one."""
    claimed = [(m, _ratio(m, quantity)) for m in others if m["method"] not in against]
    bound = _ratio(best, quantity).ci_high
    return [m for m, ratio in claimed if ratio.ci_high < 1 and ratio.value <= bound]


def _contradicted(record: dict, quantity: str) -> list[str]:
    """The methods of which nothing is claimed, as their measured variance, or Standard's, is not the predicted one.

    The gradient's ratios are predicted ones, from exact counts; only the loss's are measured.
    """
    if quantity != "loss":
        return []
    apart = [m["method"] for m in record["methods"] if m.get("agrees_with_prediction") is False]
    return [m["method"] for m in record["methods"]] if "standard" in apart else apart


def _standard(measured: Sequence[dict]) -> dict:
    return next(m for m in measured if m["method"] == "standard")


def _ratio(entry: dict, quantity: str) -> Ratio | None:
    """Noise at equal compute over Standard's; None where it has no interval."""
    part = entry if quantity == "loss" else entry.get("gradient") or {}
    stored = part.get("relative_to_standard") or {}
    # An unknown value is null in a file, and NaN in a record that was just made.
    ratio = Ratio(*(stored.get(name, math.nan) for name in ("value", "ci_low", "ci_high")))
    return ratio if None not in stored.values() and ratio.is_known else None


def _simplicity(entry: dict, quantity: str) -> tuple:
    probed = any(part in PROBED for part in entry["method"].split("+"))
    predicted = (entry.get("predicted_at_equal_compute") or {}).get("value")
    free = _ratio(entry, quantity).value if predicted is None else predicted
    return probed, entry["views"], free


def _sentences(
    record: dict, chosen: dict, name: str, best: dict | None, sure: bool, quantity: str, forwards: int
) -> list[str]:
    def ratio(entry: dict) -> str:
        r = _ratio(entry, quantity)
        return f"{r.value:.2g} ({r.ci_low:.2g} to {r.ci_high:.2g})"

    lines = []
    if best is None:
        lines.append(
            "Nothing is recommended: measured and predicted variances disagree, so that no ratio of the loss's noise "
            "can be trusted. Stay with standard, or measure again with more steps and rows."
        )
    elif not sure:
        lines.append(
            f"No method helps significantly: the least {quantity} noise at equal compute is {best['method']}'s, "
            f"{ratio(best)} of Standard's. Stay with standard, or measure with more rows."
        )
    else:
        lines.append(
            f"At your batch of {forwards} forward passes, {chosen['method']} needs {ratio(chosen)} of the compute of "
            f"standard for the same {quantity} noise."
        )
        if name != chosen["method"]:
            lines.append(f"{name} reaches the same p(t) from the losses of training itself, without a probe.")
        if best is not chosen:
            lines.append(
                f"{best['method']} measured least, {ratio(best)}, which is not surely less; it is less simple."
            )
    if best is not None and (against := _contradicted(record, quantity)):
        lines.append(f"Not compared, as measured and predicted variances disagree: {', '.join(against)}.")
    if (noise_scale := _noise_scale(record, chosen)) and sure:
        lines.append(noise_scale)
    if sure and quantity == "gradient" and (doubt := _doubt(record, chosen)):
        lines.append(doubt)
    lines += [_mirror(record, quantity)] if record.get("mirror") else []
    other = _best_for(record, "loss") if quantity == "gradient" else None
    if other not in (None, best and best["method"], chosen["method"]):
        lines.append(f"The loss's noise disagrees: by it {other} would be best. The gradient is what training follows.")
    return lines


def _best_for(record: dict, quantity: str) -> str | None:
    out = ["standard", *_contradicted(record, quantity)]
    others = [m for m in record["methods"] if m["unbiased"] and m["method"] not in out and _ratio(m, quantity)]
    return min(others, key=lambda m: _ratio(m, quantity).value)["method"] if others else None


def _noise_scale(record: dict, chosen: dict) -> str | None:
    standard, own = (
        scale_in_words((m.get("gradient") or {}).get("noise_scale") or {}, m["views"])
        for m in (record["methods"][0], chosen)
    )
    if None in (standard, own) or chosen["method"] == "standard":
        return None
    return (
        f"Its gradient noise scale is {own} forward passes, standard's {standard}: that is the batch beyond which more "
        f"of it brings little."
    )


def scale_in_words(stored: dict, views: float) -> str | None:
    """A noise scale in forward passes with its 95 % interval; None where it is not known or not above 0.

    The scale is tr Var / |G|², and few rows leave |G|² unknown first: the interval is that of its inverse, which has no
    upper end where |G|² may be 0.

    >>> scale_in_words({"value": 4.0, "stderr": 1.0, "n": 100}, 2.0), scale_in_words({"value": -4.0}, 1.0)
    ('8 (5.3 to 16)', None)
    """
    value, error, n = (stored.get(key) for key in ("value", "stderr", "n"))
    if value is None or not value > 0:
        return None
    scale, share = value * views, student(n - 1) * error / value if error is not None and n else math.nan
    if math.isnan(share):
        return f"{scale:.3g}"
    low, high = scale / (1 + share), scale / (1 - share) if share < 1 else math.inf
    return f"{scale:.3g} ({low:.2g} to {high:.2g})" if high < math.inf else f"{scale:.3g} (at least {low:.2g})"


def _doubt(record: dict, chosen: dict) -> str | None:
    """The sentence on drawn steps whose gradients do not vary as predicted; None where they do, or cannot tell."""
    if (record.get("gradient") or {}).get("heavy_tail"):  # which drawn steps miss
        return None
    both = [m["method"] for m in (record["methods"][0], chosen) if m["gradient"].get("drawn_steps_agree") is False]
    if not both:
        return None
    return (
        f"Drawn steps of {' and '.join(both)} do not vary as predicted, which the ratio rests on: measure more, with "
        f"grad.rows and grad.steps, before relying on it."
    )


def _mirror(record: dict, quantity: str) -> str:
    """The sentence that says whether MIRROR alone pays, and why."""
    entry = next((m for m in record["methods"] if m["method"] == "mirror"), None)
    ratio = _ratio(entry, quantity) if entry else None
    if not ratio:
        return record["mirror"]["sentence"]
    span = f"{ratio.value:.2g} ({ratio.ci_low:.2g} to {ratio.ci_high:.2g})"
    if "mirror" in _contradicted(record, quantity):
        return (
            f"Whether MIRROR alone pays is not claimed: {span} of Standard's loss noise was measured, and measured and "
            f"predicted variances disagree."
        )
    because = ", because |rho| A {} B + C"
    if entry["views"] != 2:  # a second view for some t only: the ratio at its own cost says all
        span, because = f"at {entry['views']:.3g} forwards a row {span}", ""
    if ratio.ci_low > 1:
        return f"MIRROR alone does not pay here, {span} of Standard's {quantity} noise{because.format('<')}."
    if ratio.ci_high < 1:
        return f"MIRROR alone pays here, {span} of Standard's {quantity} noise{because.format('>')}."
    return f"Whether MIRROR alone pays is too close to tell: {span} of Standard's {quantity} noise."


def set_options(options: dict, method: str) -> dict:
    """The options of methods that are set and have an effect on this one."""
    return {name: value for name, value in options.items() if _matters(name, value, method)}


def _matters(name: str, value: object, method: str) -> bool:
    """Whether an option is set and has an effect on this method."""
    reads = any(name in PARTS[part].options for part in method.split("+") if part in PARTS)
    return reads and value not in (None, {"mirror_below": 1.0}.get(name))
