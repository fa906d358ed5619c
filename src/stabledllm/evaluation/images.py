"""Drawn images: from captions to images and their scores, in a way that survives a kill.

Small scenes are judged exactly; any image can be scored by CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from stabledllm.config.settings import ImageSettings
from stabledllm.data.image_rows import check_codebook, image_tokens_of
from stabledllm.data.images import image_tokenizer, tokens_of
from stabledllm.decoding import DecodingStats
from stabledllm.decoding.images import ImageOptions, ImagePrompt, generate_images
from stabledllm.errors import UserError
from stabledllm.evaluation.accuracy import Share
from stabledllm.evaluation.journal import Journal
from stabledllm.images.judge import Verdict, judge
from stabledllm.images.scenes import Scene
from stabledllm.images.sheet import contact_sheet, save_png
from stabledllm.models.evaluating import evaluating
from stabledllm.models.image_tokens import CAPTION_MARKS
from stabledllm.models.loading import LoadedModel
from stabledllm.runtime.files import write_jsonl
from stabledllm.runtime.finite import require_finite
from stabledllm.stats.estimate import Estimate

FOLDER, SHEET, LINES = "pictures", "pictures.png", "pictures.jsonl"
_ON_SHEET = 36
_PARTS = tuple(field.name for field in fields(Verdict))


def prompt(loaded: LoadedModel, caption: str | None, image: ImageSettings) -> ImagePrompt:
    """A caption in the model's layout with every image token masked; None: without a caption.

    Raises:
        UserError: an empty caption, one with words that the tokenizer does not know, or one that does not fit.
    """
    tokens, n = image_tokens_of(loaded.tokenizer), tokens_of(image)
    text = [] if caption is None else _caption_ids(loaded, caption)
    hidden = image.max_text - len(text) - CAPTION_MARKS
    if hidden < 0:
        most = image.max_text - CAPTION_MARKS
        raise UserError(
            f"caption '{caption}': expected at most {most} tokens (data.image.max_text={image.max_text} "
            f"with three special ones), found {len(text)}."
        )
    return ImagePrompt(tokens.row(text, [loaded.mask_id] * n, image.max_text), hidden)


def _caption_ids(loaded: LoadedModel, caption: str) -> list[int]:
    if not caption.strip():
        raise UserError("caption: expected some text, found an empty one.")
    ids = loaded.tokenizer.encode(caption)
    if unknown := loaded.tokenizer.unknown_words(caption):
        raise UserError(
            f"caption '{caption}': expected words that model '{loaded.name}' knows, found {', '.join(unknown)}."
        )
    return ids


def draw_codes(
    loaded: LoadedModel,
    captions: Sequence[str],
    image: ImageSettings,
    options: ImageOptions,
    batch: int,
    *,
    first: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    stats: DecodingStats | None = None,
) -> torch.Tensor:
    """Codes (B, N) of an image for each caption; what is drawn depends on a caption's place ``first + i`` alone."""
    tokens = image_tokens_of(loaded.tokenizer)
    check_codebook(tokens, image_tokenizer(image.tokenizer))
    prompts, bare = [prompt(loaded, caption, image) for caption in captions], prompt(loaded, None, image)
    found = []
    with evaluating(loaded.model) as model:
        for start in range(0, len(prompts), batch):
            here = prompts[start : start + batch]
            found.append(
                generate_images(
                    model,
                    here,
                    [bare] * len(here),
                    options,
                    tokens=tokens,
                    mask_id=loaded.mask_id,
                    first=first + start,
                    stats=stats,
                ).cpu()
            )
            progress(len(here))
    return torch.cat(found)


@dataclass(frozen=True)
class ImageScores:
    """The images of captions and what is known of each."""

    images: np.ndarray
    """uint8, shape (B, S, S, 3)."""
    lines: list[dict]
    """One object an image: origin, caption, file, and its scores."""
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
    """Draw an image for every caption and score it; batches that a journal holds are not drawn again.

    Raises:
        UserError: captions that are no scenes, with no CLIP model to score them.
    """
    captions = [example["caption"] for example in examples]
    scenes = _scenes(captions)
    if scenes is None and clip is None:
        raise UserError("pictures: expected captions of scenes to judge, or 'clip' with a CLIP model, found neither.")
    stats = DecodingStats()

    def draw(run: range) -> list[dict]:
        own = DecodingStats()
        codes = draw_codes(loaded, [captions[i] for i in run], image, options, len(run), first=run.start, stats=own)
        rows: list[dict] = [{"codes": row} for row in codes.tolist()]
        rows[0]["stats"] = asdict(own)
        return rows

    rows = journal.collect(len(captions), batch, draw, progress)
    for row in rows:
        for name, value in row.get("stats", {}).items():
            setattr(stats, name, getattr(stats, name) + value)
    images = image_tokenizer(image.tokenizer).decode(torch.tensor([row["codes"] for row in rows]))
    lines = [
        {"origin": example["origin"], "caption": example["caption"], "picture": f"{FOLDER}/{number:05d}.png"}
        for number, example in enumerate(examples)
    ]
    metrics: dict[str, dict] = {}
    told = {"decoding": asdict(options), "decoding_stats": stats.as_dict()}
    if scenes is not None:
        metrics["accuracy"] = _judge(images, scenes, lines) | told
    if clip is not None:
        metrics["clip_score"] = _clip(images, captions, lines, clip, next(loaded.model.parameters()).device) | told
    return ImageScores(images, lines, metrics)


def _scenes(captions: Sequence[str]) -> list[Scene] | None:
    """The scenes that the captions say; None where any says no scene."""
    try:
        return [Scene.parse(caption) for caption in captions]
    except UserError:
        return None


def _judge(images: np.ndarray, scenes: Sequence[Scene], lines: list[dict]) -> dict:
    """Share of the images that show exactly their caption, and of those that are right in each part."""
    verdicts = [judge(image, scene) for image, scene in zip(images, scenes, strict=True)]
    for line, verdict in zip(lines, verdicts, strict=True):
        line |= {"correct": verdict.correct, "parts": asdict(verdict)}
    parts = {name: Share.of([getattr(v, name) for v in verdicts]).as_dict() for name in _PARTS}
    return Share.of([v.correct for v in verdicts]).as_dict() | {"parts": parts}


def _clip(images: np.ndarray, captions: list[str], lines: list[dict], name: str, device: torch.device) -> dict:
    """Mean CLIP score with its standard error and 95 % interval over the images."""
    from stabledllm.evaluation.clip_score import ClipScore

    clip = ClipScore(name, device)
    values = clip.score(list(images), captions)
    for line, value in zip(lines, values, strict=True):
        line["clip_score"] = value
    each = torch.tensor(values, dtype=torch.float64)
    require_finite(each, f"CLIP scores of '{name}'")
    n = len(each)
    stderr = float(each.std()) / n**0.5 if n > 1 else float("nan")
    estimate = Estimate(value=float(each.mean()), stderr=stderr, n=n, unit="CLIP score")
    low, high = estimate.interval()
    return estimate.as_dict() | {"ci_low": low, "ci_high": high, "clip": name, "note": clip.note}


def save_images(scores: ImageScores, out: Path) -> None:
    """``pictures/`` with a PNG for every caption, ``pictures.png``, the first of them at once, and ``pictures.jsonl``,
    which comes last."""
    for image, line in zip(scores.images, scores.lines, strict=True):
        save_png(out / line["picture"], image)
    shown = scores.lines[:_ON_SHEET]
    marks = [line.get("correct") for line in shown]
    save_png(out / SHEET, contact_sheet(list(scores.images[:_ON_SHEET]), [s["caption"] for s in shown], marks=marks))
    write_jsonl(out / LINES, scores.lines)


def save_drawn(images: np.ndarray, captions: Sequence[str], folder: Path) -> list[Path]:
    """A PNG for every caption, then a contact sheet of all; their paths."""
    paths = [folder / f"{number:05d}.png" for number in range(len(captions))]
    for path, image in zip(paths, images, strict=True):
        save_png(path, image)
    sheet = folder / "sheet.png"
    save_png(sheet, contact_sheet(list(images), list(captions)))
    return [*paths, sheet]
