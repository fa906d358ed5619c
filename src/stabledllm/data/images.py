"""Captioned images as examples: which specifications name images, their tokenizer, and their codes.

A model, its image tokenizer and the width of its captions belong together: :func:`with_image_defaults` fills in what
the settings leave open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch

from stabledllm.config.settings import ImageSettings
from stabledllm.errors import UserError
from stabledllm.images.cache import cached_codes
from stabledllm.images.codes import Codes
from stabledllm.images.kinds import are_images
from stabledllm.images.sources import captioned_images, parse
from stabledllm.images.tokenizer import ImageTokenizer, load_image_tokenizer
from stabledllm.models.image_choices import image_choices
from stabledllm.runtime.showing import bar

CAPTIONS_ONLY = "captions"
Settings = TypeVar("Settings")


def of_images(examples: Sequence[dict]) -> bool:
    """Whether examples are captioned images, or captions to draw."""
    return bool(examples) and "caption" in examples[0]


def with_image_defaults(settings: Settings) -> Settings:
    """The settings with the model's own image tokenizer, side and caption width where they leave these open.

    Settings for data without images are returned unchanged.

    Raises:
        UserError: a model whose config names no tokenizer or no width, or a side that the tokenizer cannot divide.
    """
    data = settings.data
    if not any(are_images(spec) for spec in (data.train, data.validation, data.test) if spec):
        return settings
    image = image_with_defaults(data.image, settings.model)
    return settings.model_copy(update={"data": data.model_copy(update={"image": image})})


def image_with_defaults(image: ImageSettings, model: str) -> ImageSettings:
    """The group ``data.image``, filled in as :func:`with_image_defaults` does."""
    choices = image_choices(model)
    missing = {name: value for name, value in choices.items() if getattr(image, name) is None}
    filled = image.model_copy(update=missing)
    for name in ("tokenizer", "max_text"):
        if getattr(filled, name) is None:
            raise UserError(
                f"key 'data.image.{name}': expected a value, since config.json of model '{model}' has none, found none."
            )
    if filled.side is None:
        filled = filled.model_copy(update={"side": image_tokenizer(filled.tokenizer).side})
    tokens_of(filled)
    return filled


@lru_cache(maxsize=4)
def image_tokenizer(name: str) -> ImageTokenizer:
    """The image tokenizer of that name, loaded once, on the accelerator if there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return load_image_tokenizer(name, device)


def tokens_of(settings: ImageSettings) -> int:
    """The number of tokens N of an image, from settings in which nothing is left open.

    Raises:
        UserError: a side that the tokenizer cannot divide.
    """
    tokenizer, side = image_tokenizer(settings.tokenizer), settings.side
    if side % tokenizer.downsampling:
        raise UserError(
            f"key 'data.image.side': expected a multiple of {tokenizer.downsampling}, by which '{tokenizer.name}' "
            f"downsamples, found {side}."
        )
    return (side // tokenizer.downsampling) ** 2


def load_images(
    spec: str,
    *,
    split: str,
    n: int,
    seed: int,
    settings: ImageSettings,
    codes: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> list[dict]:
    """Load ``{"caption", "origin", "codes"}`` of each image; codes are made once and then read from the disk.

    Args:
        n: the number of images; 0: all there are. codes: False for captions alone: no image is read.
        note: gets one line on the bad images that were dropped, if any.

    Raises:
        UserError: anything wrong with an image, a caption, the cache or the tokenizer.
    """
    kind, _ = parse(spec)
    if kind == CAPTIONS_ONLY or (not codes and kind != "codes"):
        images = captioned_images(spec, split=split, rows=n or None, seed=seed)
        return [{"caption": image.caption, "origin": image.origin} for image in images]
    encoded = encode(spec, split=split, n=n, seed=seed, settings=settings)
    if dropped := dropped_note(encoded):
        note(f"{split}: {spec}: {dropped}")
    return _examples(encoded, codes)


def encode(spec: str, *, split: str, n: int, seed: int, settings: ImageSettings) -> Codes:
    """Codes of the first ``n`` images, or of all, read from the disk; missing ones are made and stored there."""
    with bar(n or None, f"codes of {spec} {split}", "picture") as shown:
        return cached_codes(
            spec,
            image_tokenizer(settings.tokenizer),
            folder=Path(settings.cache),
            split=split,
            rows=n or None,
            seed=seed,
            side=settings.side,
            fit=settings.fit,
            on_bad=settings.on_bad,
            progress=shown.update,
        )


def dropped_note(encoded: Codes) -> str:
    """A note on how many bad images were left out, and why the first was; empty where none was."""
    if not encoded.dropped:
        return ""
    return f"dropped {len(encoded.dropped)} bad pictures (the first: {encoded.dropped[0].reason.rstrip('.')})"


def _examples(encoded: Codes, codes: bool) -> list[dict]:
    pairs = zip(encoded.captions, encoded.origins, strict=True)
    out = [{"caption": caption, "origin": origin} for caption, origin in pairs]
    if not codes:
        return out
    with_digests = zip(out, encoded.digests, strict=True)
    return [example | {"codes": encoded.codes.later(i), "picture": d} for i, (example, d) in enumerate(with_digests)]
