"""Draws images for captions and scores them, surviving a kill.

Images of scenes are judged exactly; any image can be scored by CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from stabledllm.config.settings import ImageSettings
from stabledllm.data.images import image_tokenizer
from stabledllm.decoding import DecodingStats
from stabledllm.decoding.images import ImageOptions
from stabledllm.errors import UserError
from stabledllm.evaluation.accuracy import Share
from stabledllm.evaluation.completing import decoded_into
from stabledllm.evaluation.drawing import draw_codes
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.validation import mean_over_rows
from stabledllm.images.judge import Verdict, judge
from stabledllm.images.scenes import Scene
from stabledllm.images.sheet import contact_sheet, save_png
from stabledllm.models.loading import LoadedModel
from stabledllm.runtime.files import write_jsonl
from stabledllm.runtime.finite import require_finite

FOLDER, SHEET, LINES = "pictures", "pictures.png", "pictures.jsonl"
_ON_SHEET = 36
_PARTS = tuple(field.name for field in fields(Verdict))


@dataclass(frozen=True)
class ImageScores:
    """The images drawn for captions, with the scores of each."""

    images: np.ndarray
    """uint8, shape (B, S, S, 3)."""
    lines: list[dict]
    """One object per image: origin, caption, file, and its scores."""
    metrics: dict[str, dict]
    """``accuracy`` where all captions are of scenes, ``clip_score`` where a CLIP model was named."""


def score_images(
    loaded: LoadedModel,
    examples: list[dict],
    image: ImageSettings,
    options: ImageOptions,
    batch: int,
    journal: Journal,
    *,
    clip: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> ImageScores:
    """Draw an image for every caption and score it; batches that the journal holds are not drawn again.

    Raises:
        UserError: the captions do not all describe scenes, and there is no CLIP model to score them.
    """
    captions = [example["caption"] for example in examples]
    scenes = _scenes(captions)
    if scenes is None and clip is None:
        raise UserError("pictures: expected captions of scenes to judge, or 'clip' with a CLIP model, found neither.")
    stats = DecodingStats()

    def draw(run: range, own: DecodingStats) -> list[dict]:
        codes = draw_codes(loaded, [captions[i] for i in run], image, options, len(run), first=run.start, stats=own)
        return [{"codes": row} for row in codes.tolist()]

    rows = decoded_into(journal, len(captions), batch, draw, progress, stats)
    images = image_tokenizer(image.tokenizer).decode(torch.tensor([row["codes"] for row in rows]))
    lines = [
        {"origin": example["origin"], "caption": example["caption"], "picture": f"{FOLDER}/{number:05d}.png"}
        for number, example in enumerate(examples)
    ]
    metrics: dict[str, dict] = {}
    decoding = {"decoding": asdict(options), "decoding_stats": stats.as_dict()}
    if scenes is not None:
        metrics["accuracy"] = _judge(images, scenes, lines) | decoding
    if clip is not None:
        metrics["clip_score"] = _clip(images, captions, lines, clip, next(loaded.model.parameters()).device) | decoding
    return ImageScores(images, lines, metrics)


def _scenes(captions: Sequence[str]) -> list[Scene] | None:
    """The scenes that the captions describe; None where any caption describes none."""
    try:
        return [Scene.parse(caption) for caption in captions]
    except UserError:
        return None


def _judge(images: np.ndarray, scenes: Sequence[Scene], lines: list[dict]) -> dict:
    """The share of images that show exactly their caption, and for each part the share that is right in it."""
    verdicts = [judge(image, scene) for image, scene in zip(images, scenes, strict=True)]
    for line, verdict in zip(lines, verdicts, strict=True):
        line |= {"correct": verdict.correct, "parts": asdict(verdict)}
    parts = {name: Share.of([getattr(v, name) for v in verdicts]).as_dict() for name in _PARTS}
    return Share.of([v.correct for v in verdicts]).as_dict() | {"parts": parts}


def _clip(images: np.ndarray, captions: list[str], lines: list[dict], name: str, device: torch.device) -> dict:
    """The mean CLIP score over the images, with its standard error and 95 % interval."""
    from stabledllm.evaluation.clip_score import ClipScore

    clip = ClipScore(name, device)
    values = clip.score(list(images), captions)
    for line, value in zip(lines, values, strict=True):
        line["clip_score"] = value
    each = torch.tensor(values, dtype=torch.float64)
    require_finite(each, f"CLIP scores of '{name}'")
    estimate = mean_over_rows(each, "CLIP score")
    low, high = estimate.interval()
    return estimate.as_dict() | {"ci_low": low, "ci_high": high, "clip": name, "note": clip.note}


def save_scored_images(scores: ImageScores, out: Path) -> None:
    """Write every image as a PNG to ``pictures/``, the first ones on ``pictures.png``, and last ``pictures.jsonl``."""
    for image, line in zip(scores.images, scores.lines, strict=True):
        save_png(out / line["picture"], image)
    shown = scores.lines[:_ON_SHEET]
    marks = [line.get("correct") for line in shown]
    save_png(out / SHEET, contact_sheet(list(scores.images[:_ON_SHEET]), [s["caption"] for s in shown], marks=marks))
    write_jsonl(out / LINES, scores.lines)
