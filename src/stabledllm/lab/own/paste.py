"""The lines of Python that plug a recommended method into one's own training loop."""

from __future__ import annotations

from dataclasses import fields

from stabledllm.lab.measure.recommendation import set_options
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.parts import MethodOptions


def lines_to_paste(method: Method, mask_id: int, rows: int) -> str:
    """Lines that fit p(t) where the method needs one, and make its ``Noise``, for steps of ``rows`` rows.

    >>> print(lines_to_paste(Method.parse("lowdisc+ppots"), 9, 32))
    from stabledllm import Noise
    fitted = lab.fit('lowdisc+ppots', batch=32)
    noise = Noise('lowdisc+ppots', mask_id=9, p_of_t=fitted.sampler)  # 32 rows a step
    """
    names, lines, more = ["Noise"], [], ""
    objective = method.objective
    if objective != Objective():
        names.append("Objective")
        given = {
            name: getattr(objective, name)
            for name in ("weighting", "normalization", "eps", "window", "corrected", "bell", "tokens")
        }
        if objective.weighting == "power":
            given["power"] = objective.power
        more += f", objective=Objective({_changed(given, Objective)})"
    if changed := set_options(vars(method.options), method.name):
        names.append("MethodOptions")
        more += f", options=MethodOptions({_changed(changed, MethodOptions)})"
    if method.needs_p:
        lines = [f"fitted = lab.fit('{method.name}', batch={rows})"]
        more = f", p_of_t=fitted.sampler{more}"
    return "\n".join(
        [
            f"from stabledllm import {', '.join(sorted(names))}",
            *lines,
            f"noise = Noise('{method.name}', mask_id={mask_id}{more})  # {rows} rows a step",
        ]
    )


def _changed(given: dict, kind: type) -> str:
    """The arguments that differ from their defaults."""
    plain = {one.name: one.default for one in fields(kind)}
    return ", ".join(f"{name}={value!r}" for name, value in given.items() if value != plain[name])
