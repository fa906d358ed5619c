"""Images drawn from captions, for ``generate --image`` and for the scores of ``eval``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from stabledllm.config.settings import ImageSettings
from stabledllm.data.image_rows import check_codebook, image_tokens_of
from stabledllm.data.images import image_tokenizer, tokens_of
from stabledllm.decoding import DecodingStats
from stabledllm.decoding.images import ImageOptions, ImagePrompt, generate_images
from stabledllm.errors import UserError
from stabledllm.images.sheet import contact_sheet, save_png
from stabledllm.models.evaluating import evaluating
from stabledllm.models.image_tokens import CAPTION_MARKS
from stabledllm.models.loading import LoadedModel


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
    codes = []
    with evaluating(loaded.model) as model:
        for start in range(0, len(prompts), batch):
            here = prompts[start : start + batch]
            codes.append(
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
    return torch.cat(codes)


def draw_to_folder(
    loaded: LoadedModel,
    captions: Sequence[str],
    image: ImageSettings,
    options: ImageOptions,
    folder: Path,
    stats: DecodingStats,
) -> list[Path]:
    """Draw an image for each caption, write a PNG of each and a contact sheet of all, and return their paths."""
    with tqdm(total=len(captions), desc="draw", unit="picture") as bar:
        codes = draw_codes(loaded, captions, image, options, 16, progress=bar.update, stats=stats)
    images = image_tokenizer(image.tokenizer).decode(codes)
    paths = [folder / f"{number:05d}.png" for number in range(len(captions))]
    for path, pixels in zip(paths, images, strict=True):
        save_png(path, pixels)
    sheet = folder / "sheet.png"
    save_png(sheet, contact_sheet(list(images), list(captions)))
    return [*paths, sheet]
