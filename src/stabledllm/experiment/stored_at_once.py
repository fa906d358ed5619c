"""What ``recommend`` is told besides settings, checked before torch is loaded: a measurement, and what decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stabledllm.config.run_folder import MEASURED
from stabledllm.errors import Gathered, UserError, did_you_mean

QUANTITIES = ("gradient", "loss")
"""Whose noise may decide: :data:`stabledllm.lab.measure.recommendation.QUANTITIES`; a test holds the two together."""


def refuse_quantity(by: str | None) -> None:
    """Refuse ``recommend --by`` with another quantity than the two that are measured.

    Raises:
        UserError: names them.
    """
    if by is not None and by not in QUANTITIES:
        raise UserError(
            f"recommend: expected --by {' or '.join(QUANTITIES)}, found '{by}'{did_you_mean(by, QUANTITIES, most=0)}."
        )


def check_stored(stored: Path, by: str | None, overrides: Sequence[str]) -> None:
    """Refuse a stored decomposition that is not there, and options that have no effect beside it.

    Raises:
        Mistakes: all that is wrong.
    """
    gathered = Gathered()
    with gathered.check():
        refuse_quantity(by)
    if overrides:
        gathered.add(f"recommend: expected no settings beside --from, found '{overrides[0]}'.")
    with gathered.check():
        stored_in(stored)
    gathered.refuse()


def stored_in(stored: Path) -> Path:
    """The file that ``recommend --from`` names, itself or as the one that its folder holds.

    Raises:
        UserError: there is none, or a folder holds several.
    """
    places = [stored / name for name in MEASURED.values()] if stored.is_dir() else [stored]
    there = [place for place in places if place.is_file()]
    if len(there) > 1:
        raise UserError(
            f"recommend: expected one measurement in '{stored}', found {' and '.join(p.name for p in there)}; name the "
            f"file."
        )
    if not there or there[0].suffix != ".json":
        found = "a file of another kind," if there else "none in" if stored.is_dir() else "nothing at"
        raise UserError(
            f"recommend: expected --from decomposition.json or its folder, found {found} '{stored}'; 'stabledllm "
            f"decompose' writes it."
        )
    return there[0]
