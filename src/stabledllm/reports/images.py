"""Tables of an experiment's drawn images: the methods side by side, under the same training seed and noise."""

from __future__ import annotations

import base64
import io
import json
import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image

from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text
from stabledllm.reports.labels import label
from stabledllm.reports.stored import number, run_methods

LINES = "pictures.jsonl"
_CAPTIONS, _SIDE, _NAME = 12, 256, 1000
_BYTES, _PIXELS = 50_000_000, 64_000_000
"""Most bytes and pixels of a stored image."""
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, zlib.error, struct.error)
_BROKEN += (TypeError, Image.DecompressionBombError)
"""Exceptions that PIL raises on files that are no images."""


def side_by_side(folder: Path, results: dict) -> list[dict]:
    """One table per seed: a row per caption, a column for the untuned model and each method; empty without images.

    Args:
        folder: the experiment's, where ``runs/METHOD/seed-N/pictures.jsonl`` and ``untuned/pictures.jsonl`` are.

    Raises:
        UserError: a stored image is missing or broken.
    """
    methods, tables = run_methods(results), []
    for seed in dict.fromkeys(run["seed"] for run in results["runs"]):
        places = {"untuned model": folder / "untuned"}
        places |= {label(method): folder / "runs" / method / f"seed-{seed}" for method in methods}
        drawn = {name: place for name, place in places.items() if (place / LINES).is_file()}
        if not drawn.keys() - {"untuned model"}:
            continue
        columns = [_read(place, folder) for place in drawn.values()]
        captions = [line["caption"] for line in columns[0][:_CAPTIONS]]
        for place, lines in zip(drawn.values(), columns, strict=True):
            if len(lines) < len(captions):
                raise UserError(f"{place / LINES}: expected {len(captions)} pictures or more, found {len(lines)}.")
        rows = [
            {"caption": caption, "cells": [_cell(lines[i]) for lines in columns]} for i, caption in enumerate(captions)
        ]
        tables.append({"seed": seed, "columns": list(drawn), "rows": rows})
    return tables


def _read(place: Path, folder: Path) -> list[dict]:
    """The lines of a run, with the path of each image; nothing outside the experiment's folder is read."""
    path = place / LINES
    if not _below(path, folder):
        raise UserError(f"{path}: expected a file below {folder}, found a way out of it.")
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        images = [(str(line["caption"]), line["picture"]) for line in lines]
        if not all(isinstance(image, str) for _, image in images):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: expected lines with 'caption' and 'picture', found something broken.") from None
    for number_of_line, (_, image) in enumerate(images, 1):
        if len(image) > _NAME or not _below(place / image, place):
            found = plain_text(image)
            raise UserError(f"{path}:{number_of_line}: expected a picture below {place}, found '{found}'.")
    return [
        line | {"picture": place / image, "caption": caption}
        for line, (caption, image) in zip(lines, images, strict=True)
    ]


def _below(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder after its links are followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, links in a circle
        return False


def _cell(line: dict) -> dict:
    right, score = line.get("correct"), number(line.get("clip_score"))
    mark = "" if right is None else "right" if right else "wrong"
    return {"uri": _thumbnail(line["picture"]), "mark": mark, "score": "" if score != score else f"{score:.1f}"}


def _thumbnail(path: Path) -> str:
    """The image as a data URI, at most 256 pixels wide; the page enlarges small ones.

    The image is decoded as PNG or JPEG and encoded anew, so that the page cannot contain the bytes of any other file.
    """
    try:
        if not path.is_file():  # a device or a pipe would never end
            raise OSError("no file")
        if path.stat().st_size > _BYTES:
            raise OSError(f"more than {_BYTES:,} bytes")
        with warnings.catch_warnings(), Image.open(path, formats=("PNG", "JPEG")) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > _PIXELS:
                raise OSError(f"more than {_PIXELS:,} pixels")
            image.thumbnail((_SIDE, _SIDE))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "PNG")
    except _BROKEN as error:
        problem = " ".join(str(error).replace(str(path), "it").split())
        raise UserError(f"{path}: expected a stored picture, PNG or JPEG, found {problem}.") from None
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
