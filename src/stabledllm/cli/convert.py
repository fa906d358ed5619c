"""The command ``stabledllm convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import AllowPickle, path
from stabledllm.cli.printing import answer, say


def convert(
    model: Annotated[
        str, typer.Argument(help="A Llama, Qwen2 or Qwen3: a folder, OWNER/NAME on the hub, or a file MODEL.gguf.")
    ],
    out: Annotated[Path, typer.Option(parser=path, help="Folder for the converted model.")],
    shift: Annotated[
        bool,
        typer.Option(
            "--shift/--no-shift",
            help="Predict a position from the hidden state before it, where the pretrained head is, or from its own.",
        ),
    ] = True,
    mask_token: Annotated[
        str,
        typer.Option(
            help="auto: the tokenizer's own, else spare, else special; spare: a row of the embedding without a token; "
            "special: a special token that nothing uses; new: a row more; or a special token's name."
        ),
    ] = "auto",
    mask_embedding: Annotated[
        str | None,
        typer.Option(help="The mask's row: kept as it is, or the mean of the others; a new row is always the mean."),
    ] = None,
    anneal_steps: Annotated[
        int, typer.Option(help="Training steps over which attention grows from causal to full; 0: full at once.")
    ] = 0,
    layers: Annotated[int | None, typer.Option(help="Keep so many layers, evenly spaced, for a small machine.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the weights: float32, bfloat16, float16; auto: what config.json says, float32 from GGUF."
        ),
    ] = "auto",
    allow_pickle: AllowPickle = False,
) -> None:
    """Make a masked diffusion model of an autoregressive one, to train with all that is here and with dllm."""
    from stabledllm.experiment.commands_at_once import check_command
    from stabledllm.models.conversion.options import ConversionOptions

    given = {"dtype": dtype, "mask_embedding": mask_embedding, "anneal_steps": anneal_steps, "layers": layers}
    options = ConversionOptions(shift, mask_token, **given)
    check_command("convert", {"model": model, "out": str(out)} | given, also=[options.check_mask])
    from stabledllm.cli.new_folders import new_folder
    from stabledllm.config.run_folder import model_in
    from stabledllm.models.conversion.convert import convert as convert_model

    with new_folder(out, "convert") as (folder, _):
        convert_model(model_in(model), folder, options, allow_pickle=allow_pickle, say=say)
    answer(f"wrote {out}")
