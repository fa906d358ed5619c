"""The command ``stabledllm eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import (
    LOADING,
    AllowPickle,
    Attention,
    Base,
    Block,
    Data,
    Decoding,
    Dtype,
    EndToken,
    Family,
    Length,
    TrustRemoteCode,
    fitted_decoding,
    given,
    settings_from,
)
from stabledllm.cli.printing import say, say_all


def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            help="'tiny', a folder (of a model, an adapter, or a run, with whose data and settings it then is), or a "
            "name on the hub."
        ),
    ] = "tiny",
    data: Data = None,
    out: Annotated[Path, typer.Option(help="Folder for eval.json and what was generated.")] = Path("runs/eval"),
    beside: Annotated[
        str,
        typer.Option(
            help="The untuned model, or the folder of its evaluation; auto: an adapter's base, a run's start; none."
        ),
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="At most this many problems.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together on a device.")] = 32,
    max_len: Annotated[int, typer.Option(min=2, help="Longest row of the evaluation loss.")] = 1024,
    length: Length = 64,
    steps: Annotated[
        int | None, typer.Option(help="Model calls in all; 64, or the nearest that the blocks share evenly.")
    ] = None,
    block: Block = None,
    decoding: Decoding = None,
    pad_response_to: Annotated[
        int, typer.Option(min=1, help="As in training: end tokens supervised up to a multiple.")
    ] = 1,
    base: Base = None,
    family: Family = "auto",
    dtype: Dtype = "float32",
    attention: Attention = "sdpa",
    end_token: EndToken = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """NLL (standard objective, fixed noise) and accuracy of a model on test rows, beside the untuned model's.

    With the folder of a run and no --data: the rows that it held out, and so its own final numbers. Run again to
    continue a killed evaluation; on several devices under accelerate launch. --set takes settings of the data too
    (data.system_prompt, data.few_shot, ...), held_out=true, and for pictures image_decoding.steps, clip=MODEL,
    data.image.tokenizer, ...
    """
    from stabledllm.config.recipe import apply_overrides
    from stabledllm.config.settings import EvalSettings
    from stabledllm.evaluation.run import evaluate as run
    from stabledllm.experiment.idle import idle_in_eval
    from stabledllm.runtime.launched import is_main_process

    tree = {
        "model": model,
        "data": given(context, "max_len", "pad_response_to") | ({"train": data} if data else {}),
        "out": str(out),
        "beside": beside,
        "decoding": given(context, "length", "steps", "block"),
        **given(context, "rows", *LOADING),
    }
    if given(context, "batch"):
        tree["generate_batch"] = batch
    # --set takes keys of the decoding, except those that name another group.
    others = ("data.", "image_decoding.", "objective.", "clip=", "held_out=", "draws=")
    overrides = [each if each.startswith((*others, "decoding.")) else f"decoding.{each}" for each in decoding or []]
    settings, told = settings_from(apply_overrides(tree, overrides), EvalSettings, "eval")
    settings = fitted_decoding(settings)
    notes = idle_in_eval(settings, [each for each in overrides if each.startswith(others)])
    if is_main_process():
        say_all([*told, *notes])
    run(settings, say)
