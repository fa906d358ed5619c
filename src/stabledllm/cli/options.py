"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from stabledllm.config.settings import ModelSettings

Settings = TypeVar("Settings", bound="ModelSettings")


def path(text: str | Path) -> Path:
    """The typed path; a leading ``~`` that the shell did not expand (``--out=~/x``) becomes the user's home folder."""
    return Path(text).expanduser()


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to override.")]
Model = Annotated[
    str,
    typer.Option(
        help="'tiny' or 'tiny-mmada' (shipped), a folder (of a model, an adapter, or a run, with whose data and "
        "settings it then is), or a name on the hub."
    ),
]
Base = Annotated[str | None, typer.Option(help="Of an adapter: its base model, where it is not where it was.")]
Family = Annotated[str, typer.Option(help="llada, dream, mmada or mlm; auto: what the model's config.json says.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: float32 or bfloat16.")]
Attention = Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")]
EndToken = Annotated[str | None, typer.Option(help="Ends a response, instead of the chat template's own.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that lies beside the weights; no native family needs it.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read weights from PyTorch's .bin files where there are no safetensors.")
]
Length = Annotated[int, typer.Option(help="New tokens.")]
Block = Annotated[
    int | None, typer.Option(help="Tokens of a semi-autoregressive block; 8, or the length's divisor nearest to it.")
]
Decoding = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="More of the decoding, repeatable: order, schedule, temperature, top_p, guidance, threshold, cache, seed.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="synthetic[:LEVEL], a task or TASK:PATH, jsonl:PATH, or pictures (scenes, ...). Without it a run's own, "
        "else synthetic."
    ),
]
Small = Annotated[bool, typer.Option("--small", help="A reduced run of half a minute, for a first try and tests.")]


def given(context: typer.Context, *names: str) -> dict[str, Any]:
    """The values of those of the named options that were typed, not those that are left at their defaults."""
    # By name, since newer releases of typer have an enumeration of their own in place of click's.
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def settings_from(tree: dict, kind: type[Settings], what: str) -> tuple[Settings, list[str]]:
    """The settings of a command from its given keys, beneath which a run's lie where its folder is the model.

    Returns:
        the settings, and lines to print on what came from the run.

    Raises:
        UserError: a key or value that cannot be, or a run without a model.
    """
    from stabledllm.config.from_run import with_run
    from stabledllm.config.recipe import check

    tree, told = with_run(tree, kind)
    tree.setdefault("data", {}).setdefault("train", "synthetic")
    return check(tree, kind, what), told


def fitted_decoding(settings: Settings) -> Settings:
    """The settings of ``generate`` or ``eval`` with the decoding in the blocks that the model was trained in.

    Raises:
        UserError: length, steps and block that do not fit.
    """
    from stabledllm.build import build_decoding
    from stabledllm.config.run_folder import model_in
    from stabledllm.models.loading import trained_block

    decoding = settings.decoding.in_blocks_of(trained_block(model_in(settings.base or settings.model)))
    build_decoding(decoding)
    return settings.model_copy(update={"decoding": decoding})


LOADING = ("base", "family", "dtype", "attention", "end_token", "trust_remote_code", "allow_pickle")
"""The options that say how a model is loaded, by the names of their settings."""


def load(settings: ModelSettings):
    """The model of these settings, on the base that they may name."""
    from stabledllm.build import loading_options
    from stabledllm.models.loading import load_model

    return load_model(settings.model, base=settings.base, **loading_options(settings))
