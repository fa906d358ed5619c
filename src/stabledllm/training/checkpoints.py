"""What this library adds to a checkpoint: the method, its density, and a mark that it is complete."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from stabledllm.errors import UserError
from stabledllm.files import read_json, write_json

STAMP = "stabledllm.json"
DENSITY = "p_of_t.json"
SCHEMA = "stabledllm/checkpoint/1"


def stamp(folder: Path, identity: dict, density: Path | None) -> None:
    """Mark a checkpoint complete: written last, so a checkpoint without it was cut off while saving."""
    if density is not None and density.resolve() != (folder / DENSITY).resolve():
        shutil.copyfile(density, folder / DENSITY)
    write_json(folder / STAMP, {"schema": SCHEMA, **identity})


def last_complete(out: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = [p for p in out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and (p / STAMP).is_file()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def check_same(checkpoint: Path, identity: dict) -> None:
    """Refuse to resume with anything that changes what is drawn or minimised.

    Raises:
        UserError: naming the first key that differs.
    """
    saved = read_json(checkpoint / STAMP, SCHEMA)
    for key, value in identity.items():
        if saved.get(key) != value:
            raise UserError(f"{checkpoint}: expected to resume with {key}={saved.get(key)!r}, found {key}={value!r}.")
