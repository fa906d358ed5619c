"""Captioned images as examples: which specifications are images, what they are made by, and their codes.

A model, its tokenizer of images and the width of its captions belong together: what the settings leave open,
:func:`with_image_defaults` fills in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from stabledllm.config.settings import ImageSettings
from stabledllm.errors import UserError
from stabledllm.images.cache import cached_codes
from stabledllm.images.codes import Codes
from stabledllm.images.sources import IMAGE_KINDS, captioned_images, parse
from stabledllm.images.tokenizer import ImageTokenizer, load_image_tokenizer
from stabledllm.models.image_choices import image_choices

CAPTIONS_ONLY = "captions"
Settings = TypeVar("Settings")


def of_images(examples: Sequence[dict]) -> bool:
    """Whether examples are captioned images, or captions to draw."""
    return bool(examples) and "caption" in examples[0]


def are_images(spec: str) -> bool:
    """Whether a data specification names images or captions."""
    return spec.partition(":")[0] in IMAGE_KINDS


def with_image_defaults(settings: Settings) -> Settings:
    """The same settings, with the model's own image tokenizer, side and caption width where they leave them open.

    Settings on data without images are left as they are.

    Raises:
        UserError: a model that does not say which tokenizer or which width, or a side that the tokenizer cannot divide.
    """
    data = settings.data
    if not any(are_images(spec) for spec in (data.train, data.validation, data.test) if spec):
        return settings
    image = image_with_defaults(data.image, settings.model)
    return settings.model_copy(update={"data": data.model_copy(update={"image": image})})


def image_with_defaults(image: ImageSettings, model: str) -> ImageSettings:
    """The group ``data.image`` alone, filled in as :func:`with_image_defaults` does."""
    known = image_choices(model)
    open_ = {name: value for name, value in known.items() if getattr(image, name) is None}
    found = image.model_copy(update=open_)
    for name in ("tokenizer", "max_text"):
        if getattr(found, name) is None:
            raise UserError(
                f"key 'data.image.{name}': expected a value, since config.json of model '{model}' has none, found none."
            )
    if found.side is None:
        found = found.model_copy(update={"side": image_tokenizer(found.tokenizer).side})
    tokens_of(found)
    return found


@lru_cache(maxsize=4)
def image_tokenizer(name: str) -> ImageTokenizer:
    """The tokenizer of images, loaded once, on the accelerator where there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return load_image_tokenizer(name, device)


def tokens_of(settings: ImageSettings) -> int:
    """The number of image tokens N of an image, from settings without gaps.

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
    """``{"caption", "origin", "codes"}`` of each image; its codes come from the disk, where they are made once.

    Args:
        n: images that are wanted; 0: whatever there is. codes: False for captions alone: no image is read.
        note: gets one line on the bad images that were dropped, if any.

    Raises:
        UserError: whatever is wrong with an image, a caption, the cache or the tokenizer.
    """
    kind, _ = parse(spec)
    if kind == CAPTIONS_ONLY or (not codes and kind != "codes"):
        read = captioned_images(spec, split=split, rows=n or None, seed=seed)
        return [{"caption": image.caption, "origin": image.origin} for image in read]
    found = encode(spec, split=split, n=n, seed=seed, settings=settings)
    if told := dropped_note(found):
        note(f"{split}: {spec}: {told}")
    return _examples(found, codes)


def encode(spec: str, *, split: str, n: int, seed: int, settings: ImageSettings) -> Codes:
    """Codes of the first ``n`` images, or of all: from the disk, and what is not there yet is made and put there."""
    with tqdm(total=n or None, desc=f"codes of {spec} {split}", unit="picture", leave=False) as bar:
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
            progress=bar.update,
        )


def dropped_note(found: Codes) -> str:
    """How many bad images were left out, and why the first was; empty where none was."""
    if not found.dropped:
        return ""
    return f"dropped {len(found.dropped)} bad pictures (the first: {found.dropped[0].reason.rstrip('.')})"


def _examples(found: Codes, codes: bool) -> list[dict]:
    out = [{"caption": text, "origin": origin} for text, origin in zip(found.captions, found.origins, strict=True)]
    if not codes:
        return out
    same = zip(out, found.digests, strict=True)
    return [example | {"codes": found.codes.later(i), "picture": d} for i, (example, d) in enumerate(same)]
