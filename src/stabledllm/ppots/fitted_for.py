"""What a stored p(t) was fitted for, told from its record alone: no framework is loaded to refuse another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stabledllm.errors import UserError
from stabledllm.noise.parts import FOLLOWED, PARTS, REPORTED

SCHEMA = "stabledllm/p_of_t/1"
"""Of ``p_of_t.json``."""

KIND = "objective_kind"
"""The key of ``p_of_t.json`` that says ``objective.kind``; older files, which lack it, are of ``masked``."""
_LATER = {"window": None, "corrected": False, "bell": None, "tokens": "all"}
"""Keys of the objective that older files do not have, with what they say by that."""


def refuse_other(
    record: Mapping[str, Any],
    method: str,
    objective: Mapping[str, Any],
    path: str,
    block_size: int | None = None,
    block_t: str = "own",
    kind: str = "masked",
) -> None:
    """Refuse a density that was fitted for another source, masker, views, objective or blocks: it is not the best here.

    Args:
        record: the content of ``p_of_t.json``.
        objective: the fields of :class:`~stabledllm.noise.objective.Objective`.
        block_t: whether the blocks of a row have a t of their ``own`` each, or one of the ``row``.
        kind: ``objective.kind``: what draws add to the losses of pairs is large at other t than the losses of rows.

    Raises:
        UserError: naming the first that differs.

    >>> refuse_other({"method": "ppots"}, "strats+ppots", {}, "p_of_t.json")
    Traceback (most recent call last):
    stabledllm.errors.UserError: p_of_t.json: expected a density fitted for 'strats+ppots', found one for 'ppots'.
    """
    if (fitted := record.get(KIND, "masked")) != kind:
        raise UserError(
            f"{path}: expected a density fitted for objective.kind={kind}, found one for {fitted}; fit one by "
            f"'stabledllm fit{'' if kind == 'masked' else f' objective.kind={kind}'}'."
        )
    fitted = record.get("config", {}).get("block_size")
    if fitted != block_size:
        raise UserError(f"{path}: expected a density fitted for block_size={block_size}, found one for {fitted}.")
    if block_size and (shared := record.get("config", {}).get("block_t", "own")) != block_t:
        raise UserError(f"{path}: expected a density fitted for block_t={block_t}, found one for {shared}.")
    if canonical(record["method"]) != canonical(method):
        raise UserError(f"{path}: expected a density fitted for '{method}', found one for '{record['method']}'.")
    recorded = record.get("objective") or {}
    for key, value in ((_LATER | recorded) if recorded else {}).items():
        if _as_stored(value) != _as_stored(wanted := objective.get(key, _LATER.get(key))):
            raise UserError(f"{path}: expected a density fitted for objective.{key}={wanted}, found {value}.")


def _as_stored(value: object) -> object:
    """The value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def canonical(name: str) -> str:
    """A method's name without the parts that do not change the best p, and with ``ppots`` in the place of ``adaptive``.

    >>> canonical("lowdisc+adaptive+ema")
    'lowdisc+ppots'
    """
    reported = [part.name for part in PARTS.values() if REPORTED in part.fills]
    return "+".join(FOLLOWED.get(part, part) for part in name.split("+") if part not in reported)
