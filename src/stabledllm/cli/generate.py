"""The command ``stabledllm generate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabledllm.cli.completion import complete_setting
from stabledllm.cli.grammar import GRAMMARS
from stabledllm.cli.options import Config, DryRun, Set, full_names, prompts_of
from stabledllm.cli.printing import answer_all, remark
from stabledllm.cli.prompts import read_prompted, seen_as_images
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text

if TYPE_CHECKING:
    from stabledllm.config.settings import GenerateSettings
    from stabledllm.models.loading import LoadedModel


def _complete_keys(ctx: typer.Context, incomplete: str) -> list[str]:
    words = ctx.meta.get("stabledllm.words", [])
    return [one.value for one in complete_setting(GRAMMARS["generate"], words, incomplete)] if incomplete else []


def generate(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT... [KEY=VALUE]...",
            help="One or more prompts, or - to read them from standard input, one a line. What follows -- is a prompt "
            "even if it begins like a setting.",
            autocompletion=_complete_keys,
        ),
    ] = None,
    image: Annotated[
        bool,
        typer.Option("--image", help="Draw a picture of each prompt; the model is then 'tiny-mmada' unless given."),
    ] = False,
    config: Config = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Completions of prompts, through the model's chat template; greedy low-confidence unless told otherwise.

    With --image a PNG of each prompt and a contact sheet of all, with a model of MMaDA's family.
    """
    from stabledllm.experiment.commands_at_once import check_command, check_prompts, in_trained_blocks

    words = words or []
    settled = len(words) - ctx.meta.get("stabledllm.literal", 0)
    typed, prompts = read_prompted(words[:settled], words[settled:], config, full_names(set_))
    overrides = seen_as_images(typed.overrides) if image else typed.overrides
    prompts, tree = prompts_of(prompts), typed.tree(remark)
    if image:
        tree = {"model": "tiny-mmada"} | tree
    also = [partial(check_prompts, prompts), partial(_refuse_idle, overrides, image)]
    settings = check_command("generate", tree, overrides, also=also)
    settings = _for_images(settings) if image else in_trained_blocks(settings)
    if dry_run:
        from stabledllm.cli.dry_run import of_generate

        answer_all(of_generate(settings, prompts, image=image))
    elif image:
        _draw(settings, prompts)
    else:
        _complete(settings, prompts)


def _refuse_idle(overrides: list[str], image: bool) -> None:
    """Refuse keys that act with ``--image`` alone, and those that act without it alone."""
    groups = ("decoding",) if image else ("image_decoding", "data", "out")
    for key in (override.partition("=")[0] for override in overrides):
        if key.partition(".")[0] in groups:
            expected = "none beside --image, which decodes by image_decoding" if image else "--image beside it"
            raise UserError(f"key '{key}': expected {expected}, so that it would do nothing.")


def _for_images(settings: GenerateSettings) -> GenerateSettings:
    """The settings with what the model was trained with where nothing else is given."""
    from stabledllm.data.images import image_with_defaults
    from stabledllm.evaluation.untuned import resolve

    model = resolve(settings.model)
    image = image_with_defaults(settings.data.image, model)
    return settings.model_copy(update={"model": model, "data": settings.data.model_copy(update={"image": image})})


def _load(settings: GenerateSettings) -> LoadedModel:
    from stabledllm.build import loading_options
    from stabledllm.models.loading import load_model
    from stabledllm.runtime.device import place

    loaded = load_model(settings.model, base=settings.base, **loading_options(settings))
    place(loaded.model)
    return loaded


def _complete(settings: GenerateSettings, prompts: list[str]) -> None:
    """Print each prompt with its completion, and the cost of decoding on standard error."""
    from stabledllm.build import build_decoding
    from stabledllm.decoding import DecodingStats
    from stabledllm.evaluation.completing import complete, without_effect

    options = build_decoding(settings.decoding)
    loaded = _load(settings)
    for note in without_effect(settings.decoding, loaded):
        remark(note)
    stats, conversations = DecodingStats(), [[{"role": "user", "content": p}] for p in prompts]
    for prompt, text in zip(prompts, complete(loaded, conversations, options, 32, stats=stats), strict=True):
        # A completion or a prompt may hold escape sequences, which a terminal would obey.
        print(plain_text(f"{prompt}\n{text}\n", longest=None, keep="\n\t"), flush=True)
    exact = options.exact_for(getattr(loaded.model.config, "block_size", None))
    remark(
        f"{stats.model_calls} model calls, {stats.tokens} tokens, {stats.tokens_per_second:.3g} tokens/s"
        f"{'' if exact else ' (approximate decoding)'}"
    )


def _draw(settings: GenerateSettings, captions: list[str]) -> None:
    """Write a PNG for every caption and a contact sheet of them into a new folder, and print their paths."""
    from stabledllm.build import build_image_decoding
    from stabledllm.cli.new_folders import free_folder, new_folder
    from stabledllm.decoding import DecodingStats
    from stabledllm.evaluation.drawing import draw_to_folder

    options, stats = build_image_decoding(settings.image_decoding), DecodingStats()
    out = Path(settings.out) if settings.out else None
    place = free_folder(Path("runs", "pictures"), "generate") if out is None else new_folder(out, "generate")
    with place as (folder, becomes):
        paths = draw_to_folder(_load(settings), captions, settings.data.image, options, folder, stats)
    answer_all(str(becomes / path.name) for path in paths)
    remark(f"{stats.model_calls} model calls, {stats.seconds:.3g} s")
