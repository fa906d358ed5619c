"""Images drawn from captions, for ``generate --image`` and for the scores of ``eval``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

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
from stabledllm.runtime.showing import bar


def prompt(loaded: LoadedModel, caption: str | None, image: ImageSettings) -> ImagePrompt:
    """A row in the model's layout with every image token masked, with a caption or (None) without one.

    Raises:
        UserError: the caption is empty, has words that the tokenizer does not know, or is too long.
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
    """Codes of one image per caption, shape (B, N); the random numbers of caption i depend on ``first + i`` alone."""
    tokens = image_tokens_of(loaded.tokenizer)
    check_codebook(tokens, image_tokenizer(image.tokenizer))
    prompts, bare = [prompt(loaded, caption, image) for caption in captions], prompt(loaded, None, image)
    codes = []
    with evaluating(loaded.model) as model:
        for start in range(0, len(prompts), batch):
            batch_prompts = prompts[start : start + batch]
            codes.append(
                generate_images(
                    model,
                    batch_prompts,
                    [bare] * len(batch_prompts),
                    options,
                    tokens=tokens,
                    mask_id=loaded.mask_id,
                    first=first + start,
                    stats=stats,
                ).cpu()
            )
            progress(len(batch_prompts))
    return torch.cat(codes)


def draw_to_folder(
    loaded: LoadedModel,
    captions: Sequence[str],
    image: ImageSettings,
    options: ImageOptions,
    folder: Path,
    stats: DecodingStats,
    batch: int = 16,
) -> list[Path]:
    """Draw an image for each caption, write each as a PNG and all on a contact sheet, and return the paths."""
    with bar(len(captions), "draw", "picture") as shown:
        codes = draw_codes(loaded, captions, image, options, batch, progress=shown.update, stats=stats)
    images = image_tokenizer(image.tokenizer).decode(codes)
    paths = [folder / f"{number:05d}.png" for number in range(len(captions))]
    for path, pixels in zip(paths, images, strict=True):
        save_png(path, pixels)
    sheet = folder / "sheet.png"
    save_png(sheet, contact_sheet(list(images), list(captions)))
    return [*paths, sheet]
