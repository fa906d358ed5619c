"""Checks the shape of a stored file before it is drawn, and names the first place with another shape in one sentence.

Any value may be null or missing unless it is ``Needed``; keys that no shape names are ignored. Numbers in lists are not
checked: a value that is no number is shown as unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import UnionType

from stabledllm.errors import UserError


@dataclass(frozen=True)
class Needed:
    """The shape of a value that may be neither missing nor null."""

    shape: object


NUMBER = int | float

_ESTIMATE = {"unit": str}
_PARTS = dict.fromkeys(("mask_pattern", "mask_rate", "data", "total", "mean"), _ESTIMATE)
_SPLIT = {
    **{name: _ESTIMATE for part in ("count", "targets", "context") for name in (part, f"share_of_{part}")},
    **dict.fromkeys(("least_one_view", "least_balanced", "least_partition"), _ESTIMATE),
}
"""What A of the gradient is made of."""
_ORIGIN = {"config": dict, "versions": dict, "notes": list}
_RATIO = {"value": NUMBER, "ci_low": NUMBER, "ci_high": NUMBER}
_NOISE = {
    "objective": Needed(str),
    "start": Needed(str),
    "data": Needed(str),
    "recipe": Needed({"data": dict, "objective": dict}),
    "sentences": Needed([Needed(str)]),
}
_OF_METHOD = {
    "name": Needed(str),
    "forwards": Needed(int),
    "multiple": Needed(int),
    "gradient": Needed(_ESTIMATE),
    "loss": Needed(_ESTIMATE),
    "p_holm": {"loss": Needed(NUMBER), "gradient": Needed(NUMBER)},
    "between": NUMBER,
    "bias": Needed(_ESTIMATE),
    "value": Needed(_ESTIMATE),
}

_RUN = {
    "method": Needed(str),
    "seed": Needed(int | str),
    "status": str,
    "diverged": {"step": NUMBER, "what": str},
    "metrics": dict,
    "history": [Needed({"step": Needed(NUMBER)})],
    "learning_rate": NUMBER,
    "max_grad_norm": NUMBER,
}
_SAVED = _RATIO | {"method": Needed(str), "side": str, "wall_time": _RATIO, "seconds_per_forward": _RATIO}
_END = {"value": Needed(NUMBER), "is": str}
_CURVE = {
    "method": Needed(str),
    "max_grad_norm": NUMBER,
    "points": Needed([Needed({"learning_rate": Needed(NUMBER), "n": Needed(int), "n_diverged": Needed(int)})]),
    "best": {"learning_rate": Needed(NUMBER), "value": Needed(NUMBER)},
    "range": {"low": Needed(_END), "high": Needed(_END), "factor": Needed(_END)},
    "versus_standard": {"ratio": {"value": NUMBER, "is": str}, "best": dict},
}
"""Final losses over learning rates."""


def _methods(first: str, *more: str) -> list:
    """The rows of a record of noise, whose ``first`` quantity goes into the loss; ``more``: further estimates."""
    over = dict.fromkeys((first, "loss", "gradient"), Needed(_RATIO))
    own = {"over_standard": Needed(over)} | dict.fromkeys((first, *more), Needed(_ESTIMATE))
    return [Needed(_OF_METHOD | own)]


SHAPES = {
    "decomposition": _ORIGIN
    | {
        "loss": Needed(_PARTS),
        "gradient": _PARTS | {"split": _SPLIT},
        "blocks": {"sentence": Needed(str), "gradient": {"sentence": Needed(str)}},
        "curves": dict,
        "densities": [Needed({"method": Needed(str), "t": list, "p": list})],
        "by_length": [Needed(_PARTS | {"tokens": list})],
        "mirror": {"sentence": str},
        "methods": [
            Needed(
                {
                    "method": Needed(str),
                    "relative_to_standard": dict,
                    "gradient": {"relative_to_standard": dict, "noise_scale": dict, "clipped": dict, "update": dict},
                }
            )
        ],
        "recommendation": {"sentences": Needed([Needed(str)]), "recipe": Needed(str)},
    },
    "preference_noise": _ORIGIN | _NOISE | {"pairs": int, "methods": Needed(_methods("margin"))},
    "policy_noise": _ORIGIN
    | _NOISE
    | {"prompts": int, "methods": Needed(_methods("log_ratio", "direction", "offset", "size"))},
    "replay": {"step": Needed(int), "sentence": Needed(str), "cause": Needed(str)},
    "p_of_t": _ORIGIN
    | {
        "method": Needed(str),
        "signal": str,
        "density": Needed(list),
        "parameters": dict,
        "diagnostics": Needed({"fallback": str}),
        "profile": Needed(dict),
    },
    "results": _ORIGIN
    | {
        "status": {"finished": NUMBER, "planned": NUMBER},
        "untuned": {"metrics": dict},
        "runs": Needed([Needed(_RUN)]),
        "reference_runs": [Needed(_RUN)],
        "compute_saved": {
            "metrics": Needed(
                [Needed({"metric": Needed(str), "curve": Needed([dict]), "methods": Needed([Needed(_SAVED)])})]
            ),
            "sentences": Needed([Needed(str)]),
        },
        "summary": Needed(
            [Needed({"method": Needed(str), "metric": Needed(str), "n": NUMBER, "versus_standard": dict})]
        ),
        "rates": {
            "metric": Needed(str),
            "learning_rates": Needed([Needed(NUMBER)]),
            "curves": Needed([Needed(_CURVE)]),
        },
        "averages": [
            Needed(
                {
                    "method": Needed(str),
                    "metric": Needed(str),
                    "average": Needed(str),
                    "learning_rate": NUMBER,
                    "max_grad_norm": NUMBER,
                    "versus_last": dict,
                    "sd_versus_last": _RATIO,
                    "versus_standard": dict,
                }
            )
        ],
    },
}
"""For each kind of file, the shape of the places that the report reads."""

_WORDS = {
    int: "a whole number",
    dict: "an object",
    list: "a list",
    str: "text",
    NUMBER: "a number",
    int | str: "a number or text",
}


def check_shape(path: Path, value: object, shape: object, place: str = "") -> None:
    """Refuse a file with a value of another shape.

    Raises:
        UserError: names the file, the place in it (``runs[0].method``), what was expected and what was found.
    """
    needed = isinstance(shape, Needed)
    if value is None and not needed:
        return
    shape = shape.shape if needed else shape
    of_type = shape if isinstance(shape, type | UnionType) else type(shape)
    if not isinstance(value, of_type) or isinstance(value, bool):
        raise UserError(f"{path}: expected {place!r} to be {_WORDS[of_type]}, found {value!r:.60}.")
    if isinstance(shape, dict):
        for key, inner in shape.items():
            check_shape(path, value.get(key), inner, f"{place}.{key}" if place else key)
    elif isinstance(shape, list):
        for i, item in enumerate(value):
            check_shape(path, item, shape[0], f"{place}[{i}]")
