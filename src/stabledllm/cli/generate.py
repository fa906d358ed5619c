"""The command ``stabledllm generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabledllm.cli.options import (
    LOADING,
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
    fitted_decoding,
    given,
    load,
    path,
    settings_from,
)
from stabledllm.cli.printing import say, say_all
from stabledllm.cli.prompts import read_prompts
from stabledllm.plain_text import plain_text

if TYPE_CHECKING:
    from stabledllm.config.settings import GenerateSettings
    from stabledllm.data.prompts import Prompt


def generate(
    context: typer.Context,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="One or more prompts, or - to read them from standard input, one a line."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="File of prompts: text, one a line, or JSON lines (prompt, question, instruction, messages, ...), "
            "JSON, CSV, Parquet; - for standard input."
        ),
    ] = None,
    image: Annotated[
        bool, typer.Option("--image", help="Draw a picture of each prompt, with a model of MMaDA's family.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="'tiny' by default, with --image 'tiny-mmada'; a folder (of a model, an adapter, or a run, whose "
            "settings come with it), or a name on the hub."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            help="File of JSON lines for the completions, instead of printing them; run again to continue. With "
            "--image: new folder; runs/pictures/1, 2, ... without.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together; 16 pictures.")] = 32,
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
    data.image.tokenizer, data.image.side, data.image.max_text. For text also data.system_prompt, data.columns, ...
    """
    from stabledllm.config.recipe import apply_overrides
    from stabledllm.config.settings import GenerateSettings
    from stabledllm.evaluation.completing import refuse_unfit

    tree = {"model": model or ("tiny-mmada" if image else "tiny"), **given(context, *LOADING)}
    group = "image_decoding" if image else "decoding"
    tree[group] = given(context, *(["steps"] if image else ["length", "steps", "block"]))
    if "batch" in given(context, "batch"):
        tree["generate_batch"] = batch
    if out is not None:
        tree["out"] = str(out)
    named = ("data.", "decoding.", "image_decoding.")
    overrides = [each if each.startswith(named) else f"{group}.{each}" for each in decoding or []]
    settings, told = settings_from(apply_overrides(tree, overrides), GenerateSettings, "generate")
    for line in told:  # beside the completions, which may be read by another program
        print(line, file=sys.stderr)
    prompts = read_prompts(prompt or [], file, settings.data)
    refuse_unfit([each.text for each in prompts])
    if image:
        _draw([each.text for each in prompts], settings)
    else:
        _complete(prompts, fitted_decoding(settings))


def _complete(prompts: list[Prompt], settings: GenerateSettings) -> None:
    """Print each prompt with its completion, or write them to a file; the cost of decoding goes to standard error."""
    from stabledllm.build import build_decoding
    from stabledllm.decoding import DecodingStats
    from stabledllm.evaluation.answering import completions, refuse_written, write_completions
    from stabledllm.evaluation.completing import without_effect
    from stabledllm.runtime.locks import writing_beside

    options, stats = build_decoding(settings.decoding), DecodingStats()
    if settings.out is not None:
        refuse_written(Path(settings.out))
    loaded = load(settings)
    for note in without_effect(settings.decoding, loaded):
        print(note, file=sys.stderr)
    if settings.out is None:
        for each, text in completions(loaded, prompts, settings, options, stats):
            # A completion or a prompt may hold escape sequences, which a terminal would obey.
            say(plain_text(f"{each.text}\n{text}\n", longest=None, keep="\n\t"))
    else:
        with writing_beside(settings.out, "generate"):
            write_completions(loaded, prompts, settings, options, stats)
        say(f"wrote {len(prompts)} completions to {settings.out}")
    exact = options.exact_for(getattr(loaded.model.config, "block_size", None))
    print(
        f"{stats.model_calls} model calls, {stats.tokens} tokens, {stats.tokens_per_second:.3g} tokens/s"
        f"{'' if exact else ' (approximate decoding)'}",
        file=sys.stderr,
    )


def _draw(captions: list[str], settings: GenerateSettings) -> None:
    """Write a PNG for every caption and a contact sheet of them into a new folder, and print their paths."""
    from stabledllm.build import build_image_decoding
    from stabledllm.cli.new_folders import free_folder, new_folder
    from stabledllm.data.images import image_with_defaults
    from stabledllm.decoding import DecodingStats
    from stabledllm.evaluation.drawing import draw_to_folder

    options, stats = build_image_decoding(settings.image_decoding), DecodingStats()
    image = image_with_defaults(settings.data.image, settings.model)
    out = settings.out and Path(settings.out)
    place = new_folder(out, "generate") if out else free_folder(Path("runs", "pictures"), "generate")
    with place as (folder, becomes):
        batch = {"batch": settings.generate_batch} if "generate_batch" in settings.model_fields_set else {}
        paths = draw_to_folder(load(settings), captions, image, options, folder, stats, **batch)
    say_all(str(becomes / path.name) for path in paths)
    print(f"{stats.model_calls} model calls, {stats.seconds:.3g} s", file=sys.stderr)
