"""The methods and options that a caller gives a :class:`~stabledllm.lab.own.lab.Lab`, with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from stabledllm.errors import UserError
from stabledllm.lab.measure.options import DEFAULT_METHODS, MOST, DecomposeOptions, check_whole, refuse_unknown
from stabledllm.lab.own.model import OwnModel
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.parts import STANDARD

Names = Sequence[str] | str | None
"""Names of methods, also in one text with commas between them; None takes the default list."""
_LARGEST_ID = 2**31 - 1
_BOUNDS = {
    "mask_id": (0, _LARGEST_ID),
    "pad_id": (0, _LARGEST_ID),
    "seed": (0, 2**32 - 1),
    "batch": (1, MOST),
    "tokens_per_batch": (1, _LARGEST_ID),
}


def check_numbers(**numbers: int | None) -> None:
    """Refuse arguments of a Lab that are no whole numbers in their bounds; ``tokens_per_batch`` may be None.

    Raises:
        UserError: naming the first.
    """
    for name, value in numbers.items():
        if value is not None or name != "tokens_per_batch":
            least, most = _BOUNDS[name]
            check_whole(name, value, least, most)


def changed(plain: Any, given: Any, where: str) -> Any:
    """Options with some changed: by a dictionary, or by an object of the same kind that takes their place.

    Raises:
        UserError: an unknown option, or a value out of bounds.
    """
    if isinstance(given, type(plain)):
        return given
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: expected a dictionary of options, found {type(given).__name__}.")
    refuse_unknown(type(plain), list(given), where)
    return replace(plain, **given)


def decompose_options(given: dict, seed: int, batch: int) -> DecomposeOptions:
    """The options of a decomposition, for training steps of ``batch`` forward passes."""
    refuse_unknown(DecomposeOptions, list(given), "decompose")
    plain = DecomposeOptions()
    nested = {name: getattr(plain, name) for name in ("probe", "grad")}
    made = {name: changed(nested[name], value, name) for name, value in given.items() if name in nested}
    return DecomposeOptions(**{"seed": seed, "forwards": batch} | given | made)


def config_of(options: DecomposeOptions, methods: Sequence[Method], gradient: bool) -> dict:
    """The entry ``config`` of a record; the first method, Standard, has the options and the objective of them all."""
    return asdict(options) | {
        "methods": [method.name for method in methods],
        "method_options": asdict(methods[0].options),
        "objective": asdict(methods[0].objective),
        "gradient": gradient,
    }


def methods_to_measure(
    names: Names, parse: Callable[[str], Method], model: OwnModel, objective: Objective
) -> tuple[list[Method], list[str]]:
    """The methods, Standard first, and notes on those of the default list that are left out.

    Args:
        names: None takes the default list, of which only what the objective and the model can take.
        parse: makes a method of its name.

    Raises:
        UserError: an unknown method, or one that the model cannot take.
    """
    notes: list[str] = []
    if names is None:
        plain = [method for method in map(Method.parse, DEFAULT_METHODS) if method.takes(objective)]
        left_out = [m.name for m in plain if m.signal == "output layer" and model.get_output_embeddings() is None]
        names = [method.name for method in plain if method.name not in left_out]
        notes = [f"{name}: left out, as the model names no output layer; give Lab its head." for name in left_out]
    elif isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    methods = list(map(parse, [STANDARD, *names]))
    for method in methods:
        if method.signal == "output layer":
            need_head(model, method.name)
    return [methods[0], *(method for method in methods if method.name != STANDARD)], notes


def need_head(model: OwnModel, method: str) -> None:
    """Refuse a method that probes the output layer for a model that names none.

    Raises:
        UserError: there is none.
    """
    if model.get_output_embeddings() is None:
        raise UserError(
            f"method '{method}': expected head, the model's output layer or its name, since the model does not name "
            f"one itself, found none."
        )
