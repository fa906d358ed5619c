"""The command ``stabledllm generate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabledllm.cli.completion import complete_setting
from stabledllm.cli.grammar import GRAMMARS
from stabledllm.cli.options import Config, DryRun, Set, full_names
from stabledllm.cli.printing import answer, answer_all, remark
from stabledllm.cli.prompt_files import check_typed, read_prompts
from stabledllm.cli.prompts import read_prompted, seen_as_images
from stabledllm.errors import UserError

if TYPE_CHECKING:
    from stabledllm.config.settings import GenerateSettings
    from stabledllm.data.prompts import Prompt
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
    from stabledllm.evaluation.begun import refuse_written
    from stabledllm.experiment.commands_at_once import check_command, check_prompts, in_trained_blocks
    from stabledllm.runtime.folders import refuse_used

    words = words or []
    settled = len(words) - ctx.meta.get("stabledllm.literal", 0)
    typed, typed_prompts = read_prompted(words[:settled], words[settled:], config, full_names(set_))
    overrides = seen_as_images(typed.overrides) if image else typed.overrides
    tree = ({"model": "tiny-mmada"} if image else {}) | typed.tree(remark)
    file = _typed_last(overrides, "file")
    also = [partial(check_typed, typed_prompts, file), partial(_refuse_idle, overrides, image)]
    if out := _typed_last(overrides, "out"):
        also.append(partial(refuse_used if image else refuse_written, Path(out).expanduser()))
    settings = check_command("generate", tree, overrides, also=also, tell=remark)
    prompts = read_prompts(typed_prompts, settings.file, settings.data)
    check_prompts([prompt.text for prompt in prompts])
    settings = _for_images(settings) if image else in_trained_blocks(settings)
    if dry_run:
        from stabledllm.cli.dry_run import of_generate

        answer_all(of_generate(settings, prompts, image=image))
    elif image:
        _draw(settings, [prompt.text for prompt in prompts])
    else:
        _complete(settings, prompts)


def _typed_last(overrides: list[str], key: str) -> str | None:
    """The value that was typed last for a key."""
    return next((one.removeprefix(f"{key}=") for one in reversed(overrides) if one.startswith(f"{key}=")), None)


def _refuse_idle(overrides: list[str], image: bool) -> None:
    """Refuse keys that act with ``--image`` alone, and those that act without it alone."""
    groups = ("decoding",) if image else ("image_decoding", "data.image")
    for key in (override.partition("=")[0] for override in overrides):
        if f"{key}.".startswith(tuple(f"{group}." for group in groups)):
            expected = "none beside --image, which decodes by image_decoding" if image else "--image beside it"
            raise UserError(f"key '{key}': expected {expected}, so that it would do nothing.")


def _for_images(settings: GenerateSettings) -> GenerateSettings:
    """The settings with what the model was trained with where nothing else is given."""
    from stabledllm.data.images import image_with_defaults

    image = image_with_defaults(settings.data.image, settings.model)
    return settings.model_copy(update={"data": settings.data.model_copy(update={"image": image})})


def _load(settings: GenerateSettings) -> LoadedModel:
    from stabledllm.build import loading_options, take_block
    from stabledllm.models.loading import load_model
    from stabledllm.runtime.device import place

    loaded = load_model(settings.model, base=settings.base, **loading_options(settings))
    take_block(loaded, settings.decoding.block, given="block" in settings.decoding.model_fields_set)
    place(loaded.model)
    return loaded


def _complete(settings: GenerateSettings, prompts: list[Prompt]) -> None:
    """Print each prompt with its completion, or write them to a file; the cost of decoding goes to standard error."""
    from stabledllm.build import build_decoding
    from stabledllm.decoding import DecodingStats, refuse_unsuited
    from stabledllm.evaluation.answering import completions, write_completions
    from stabledllm.evaluation.completing import without_effect
    from stabledllm.runtime.locks import writing_beside

    options, stats = build_decoding(settings.decoding), DecodingStats()
    loaded = _load(settings)
    refuse_unsuited(loaded.model, options)
    for note in without_effect(settings.decoding, loaded):
        remark(note)
    if settings.out is None:
        for prompt, text in completions(loaded, prompts, settings, options, stats):
            answer(f"{prompt.text}\n{text}\n")
    else:
        with writing_beside(settings.out, "generate"):
            write_completions(loaded, prompts, settings, options, stats)
        many = f"{len(prompts)} completion{'s' if len(prompts) != 1 else ''}"
        answer(f"wrote {many} to {settings.out}")
    exact = options.exact_for(getattr(loaded.model.config, "block_size", None))
    remark(f"{stats}{'' if exact else ' (approximate decoding)'}")


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
        batch = {"batch": settings.generate_batch} if "generate_batch" in settings.model_fields_set else {}
        paths = draw_to_folder(_load(settings), captions, settings.data.image, options, folder, stats, **batch)
    answer_all(str(becomes / path.name) for path in paths)
    remark(f"{stats.model_calls} model calls, {stats.seconds:.3g} s")
