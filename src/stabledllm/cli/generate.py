"""The command ``stabledllm generate``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabledllm.cli.options import (
    AllowPickle,
    Attention,
    Base,
    Block,
    Decoding,
    Dtype,
    EndToken,
    Family,
    Length,
    TrustRemoteCode,
    decoding_tree,
    load,
    loading_of,
    of_group,
    path,
    prompts_of,
)
from stabledllm.cli.printing import say_all
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text

if TYPE_CHECKING:
    from stabledllm.config.settings import GenerateSettings, ShortDecodingSettings


def generate(
    prompt: Annotated[
        list[str], typer.Argument(help="One or more prompts, or - to read them from standard input, one a line.")
    ],
    image: Annotated[
        bool, typer.Option("--image", help="Draw a picture of each prompt, with a model of MMaDA's family.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="'tiny' by default, with --image 'tiny-mmada'; a folder (model or adapter, with --image a run), or a "
            "name on the hub."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="With --image: new folder; runs/pictures/1, 2, ... without.")
    ] = None,
    length: Length = 64,
    steps: Annotated[
        int | None,
        typer.Option(help="Model calls in all; 64, or the nearest that the blocks share evenly; 18 for pictures."),
    ] = None,
    block: Block = None,
    decoding: Decoding = None,
    base: Base = None,
    family: Family = "auto",
    dtype: Dtype = "float32",
    attention: Attention = "sdpa",
    end_token: EndToken = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Completions of prompts, through the model's chat template; greedy low-confidence unless told otherwise.

    With --image a PNG of each prompt and a contact sheet of all; --set takes guidance, temperature, seed, and
    data.image.tokenizer, data.image.side, data.image.max_text.
    """
    loading = loading_of(base, family, dtype, attention, end_token, trust_remote_code, allow_pickle)
    prompts = prompts_of(prompt)
    from stabledllm.experiment.commands_at_once import check_command, check_prompts, in_trained_blocks

    model = model or ("tiny-mmada" if image else "tiny")
    group = "image_decoding" if image else "decoding"
    chosen = ({} if steps is None else {"steps": steps}) if image else decoding_tree(length, steps, block)
    settings = check_command(
        "generate",
        {"model": model, group: chosen} | loading,
        [one if image and one.startswith("data.image.") else of_group(group, one) for one in decoding or []],
        also=[partial(check_prompts, prompts), partial(_refuse_out, out, image)],
    )
    if image:
        _draw(prompts, settings, out, loading)
    else:
        _complete(prompts, model, in_trained_blocks(settings).decoding, loading)


def _refuse_out(out: Path | None, image: bool) -> None:
    if out is not None and not image:
        raise UserError("generate: expected --image beside --out, found none; completions are printed.")


def _complete(prompts: list[str], model: str, settings: ShortDecodingSettings, loading: dict) -> None:
    """Print each prompt with its completion, and the cost of decoding on standard error."""
    from stabledllm.build import build_decoding
    from stabledllm.decoding import DecodingStats
    from stabledllm.evaluation.completing import complete, without_effect

    options = build_decoding(settings)
    loaded = load(model, loading)
    for note in without_effect(settings, loaded):
        print(note, file=sys.stderr)
    stats, conversations = DecodingStats(), [[{"role": "user", "content": p}] for p in prompts]
    for prompt, text in zip(prompts, complete(loaded, conversations, options, 32, stats=stats), strict=True):
        # A completion or a prompt may hold escape sequences, which a terminal would obey.
        print(plain_text(f"{prompt}\n{text}\n", longest=None, keep="\n\t"), flush=True)
    exact = options.exact_for(getattr(loaded.model.config, "block_size", None))
    print(
        f"{stats.model_calls} model calls, {stats.tokens} tokens, {stats.tokens_per_second:.3g} tokens/s"
        f"{'' if exact else ' (approximate decoding)'}",
        file=sys.stderr,
    )


def _draw(captions: list[str], settings: GenerateSettings, out: Path | None, loading: dict) -> None:
    """Write a PNG for every caption and a contact sheet of them into a new folder, and print their paths."""
    from stabledllm.build import build_image_decoding
    from stabledllm.cli.new_folders import free_folder, new_folder
    from stabledllm.data.images import image_with_defaults
    from stabledllm.decoding import DecodingStats
    from stabledllm.evaluation.drawing import draw_to_folder
    from stabledllm.evaluation.untuned import resolve

    options = build_image_decoding(settings.image_decoding)
    model, stats = resolve(settings.model), DecodingStats()
    image = image_with_defaults(settings.data.image, model)
    place = free_folder(Path("runs", "pictures"), "generate") if out is None else new_folder(out, "generate")
    with place as (folder, becomes):
        paths = draw_to_folder(load(model, loading), captions, image, options, folder, stats)
    say_all(str(becomes / path.name) for path in paths)
    print(f"{stats.model_calls} model calls, {stats.seconds:.3g} s", file=sys.stderr)
