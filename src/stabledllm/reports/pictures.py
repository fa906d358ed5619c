"""Drawn pictures of an experiment, side by side: every method under the same training seed and the same noise."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from stabledllm.errors import UserError
from stabledllm.reports.stored import number, run_methods
from stabledllm.reports.style import label
from stabledllm.tasks.files import read_jsonl

LINES = "pictures.jsonl"
_CAPTIONS, _SIDE = 12, 256


def side_by_side(folder: Path, results: dict) -> list[dict]:
    """One table a seed: captions down, the untuned model and the methods across; empty where no pictures are stored.

    Args:
        folder: of the experiment, where ``runs/METHOD/seed-N/pictures.jsonl`` and ``untuned/pictures.jsonl`` are.

    Raises:
        UserError: a stored picture that is missing or broken.
    """
    methods, tables = run_methods(results), []
    for seed in dict.fromkeys(run["seed"] for run in results["runs"]):
        places = {"untuned model": folder / "untuned"}
        places |= {label(method): folder / "runs" / method / f"seed-{seed}" for method in methods}
        found = {name: place for name, place in places.items() if (place / LINES).is_file()}
        if not found.keys() - {"untuned model"}:
            continue
        columns = [_read(place) for place in found.values()]
        captions = [line["caption"] for line in columns[0][:_CAPTIONS]]
        rows = [
            {"caption": caption, "cells": [_cell(lines[i]) for lines in columns]} for i, caption in enumerate(captions)
        ]
        tables.append({"seed": seed, "columns": list(found), "rows": rows})
    return tables


def _read(place: Path) -> list[dict]:
    """The lines of a run, with the place of each picture's file."""
    path = place / LINES
    try:
        lines = [line for _, line in read_jsonl(path)]
        return [line | {"picture": place / line["picture"], "caption": line["caption"]} for line in lines]
    except (KeyError, TypeError):
        raise UserError(f"{path}: expected lines with 'caption' and 'picture', found something broken.") from None


def _cell(line: dict) -> dict:
    right, score = line.get("correct"), number(line.get("clip_score"))
    mark = "" if right is None else "right" if right else "wrong"
    return {"uri": _thumbnail(line["picture"]), "mark": mark, "score": "" if score != score else f"{score:.1f}"}


def _thumbnail(path: Path) -> str:
    """The picture as a data URI, at most 256 pixels wide; the page enlarges small ones."""
    try:
        with Image.open(path) as image:
            image.load()
            image.thumbnail((_SIDE, _SIDE))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
    except OSError as error:
        raise UserError(f"{path}: expected a stored picture, found {' '.join(str(error).split())}.") from None
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
