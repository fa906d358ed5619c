"""The command ``stabledllm encode``."""

from __future__ import annotations

from typing import Annotated

import typer

from stabledllm.cli.arguments import read_arguments
from stabledllm.cli.options import Overrides
from stabledllm.cli.printing import answer, say
from stabledllm.errors import UserError, did_you_mean


def encode(
    data: Annotated[str, typer.Argument(help="scenes, text-to-image-2m[:PATH] or images:PATH.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Where the data have splits of their own.")] = "train",
    rows: Annotated[int | None, typer.Option(min=1, help="At most this many pictures.")] = None,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
) -> None:
    """Turn pictures into codes on disk, once; run again to continue. Training does the same when it needs to."""
    from stabledllm.config.recipe import apply_overrides, check
    from stabledllm.config.settings import ImageSettings
    from stabledllm.images.kinds import IMAGE_KINDS, are_images

    if not are_images(data):
        near = did_you_mean(data.partition(":")[0], IMAGE_KINDS)
        raise UserError(f"encode: expected pictures (scenes, text-to-image-2m, images:PATH), found '{data}'{near}.")
    settings = check(apply_overrides({}, read_arguments("encode", overrides).overrides), ImageSettings, "encode")
    if settings.tokenizer is None:
        if not data.startswith("scenes"):
            raise UserError("encode: expected tokenizer=NAME, such as showlab/magvitv2, found none.")
        settings = settings.model_copy(update={"tokenizer": "tiny-vq"})
    from stabledllm.data.images import dropped_note, image_tokenizer
    from stabledllm.data.images import encode as run

    if settings.side is None:
        settings = settings.model_copy(update={"side": image_tokenizer(settings.tokenizer).side})
    codes = run(data, split=split, n=rows or 0, seed=seed, settings=settings)
    if note := dropped_note(codes):
        say(note)
    answer(f"{len(codes)} pictures of {codes.side} x {codes.side}, codes of '{codes.tokenizer}': {codes.folder}")
    answer(f"to train on them: data.train=codes:{codes.folder}")
