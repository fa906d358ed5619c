"""Arguments and options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stabledllm.config.settings import ShortDecodingSettings


def path(text: str | Path) -> Path:
    """The typed path; a leading ``~`` that the shell did not expand (``--out=~/x``) becomes the user's home folder."""
    return Path(text).expanduser()


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to override.")]
Model = Annotated[
    str, typer.Option(help="'tiny' or 'tiny-mmada' (shipped), a folder (model or adapter), or a name on the hub.")
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
    str, typer.Option(help="synthetic[:LEVEL], a task or TASK:PATH, jsonl:PATH, or pictures (scenes, ...).")
]
Small = Annotated[bool, typer.Option("--small", help="A reduced run of half a minute, for a first try and tests.")]

Wide = Annotated[bool, typer.Option("--wide", help="All columns of the tables, not only those that answer.")]
Quick = Annotated[bool, typer.Option("--quick", help="A coarse answer in about a minute, from fewer rows and draws.")]


def prompts_of(typed: list[str]) -> list[str]:
    """The typed prompts, or, where ``-`` was typed, the lines of standard input.

    Raises:
        UserError: standard input is not UTF-8.
    """
    from stabledllm.tasks.text_files import lines

    return [line for _, _, line in lines(sys.stdin.buffer, "standard input")] if typed == ["-"] else typed


def decoding_of(
    model: str, length: int, steps: int | None, block: int | None, overrides: list[str], base: str | None = None
) -> ShortDecodingSettings:
    """The settings of decoding: what is not given follows the length, and the blocks that the model was trained in.

    Args:
        base: the base model of an adapter, where it has moved.

    Raises:
        UserError: a key or value that cannot be.
    """
    from stabledllm.build import build_decoding
    from stabledllm.config.recipe import apply_overrides, check
    from stabledllm.config.settings import ShortDecodingSettings
    from stabledllm.models.loading import trained_block

    given = {name: value for name, value in (("steps", steps), ("block", block)) if value is not None}
    settings = check(apply_overrides({"length": length} | given, overrides), ShortDecodingSettings, "decoding")
    settings = settings.in_blocks_of(trained_block(base or model))
    build_decoding(settings)
    return settings


def loading_of(
    base: str | None,
    family: str,
    dtype: str,
    attention: str,
    end_token: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> dict:
    """The options that say how a model is loaded, by the names of its settings."""
    return {
        "base": base,
        "family": family,
        "dtype": dtype,
        "attention": attention,
        "end_token": end_token,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }


def load(model: str, loading: dict):
    """The model, loaded with the options that :func:`loading_of` returned."""
    from stabledllm.build import loading_options
    from stabledllm.config.recipe import check
    from stabledllm.config.settings import ModelSettings
    from stabledllm.models.loading import load_model

    settings = {"model": model} | {name: value for name, value in loading.items() if name != "base"}
    options = loading_options(check(settings, ModelSettings, f"model '{model}'"))
    return load_model(model, base=loading["base"], **options)
