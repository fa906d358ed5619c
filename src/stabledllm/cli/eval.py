"""The command ``stabledllm eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import (
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
    decoding_tree,
    loading_of,
    of_group,
)
from stabledllm.cli.printing import say, say_all


def evaluate(
    model: Annotated[
        str, typer.Option(help="'tiny', a folder (of a model, an adapter or a run), or a name on the hub.")
    ] = "tiny",
    data: Data = "synthetic",
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

    Run again to continue a killed evaluation; on several devices under accelerate launch. --set takes settings of the
    data too (data.system_prompt, data.few_shot, ...), and for pictures image_decoding.steps, clip=MODEL,
    data.image.tokenizer, ...
    """
    from stabledllm.experiment.commands_at_once import check_command, in_trained_blocks

    # --set takes keys of the decoding, except those that name another group.
    others = [override for override in decoding or [] if override.startswith(("data.", "image_decoding.", "clip="))]
    of_decoding = [of_group("decoding", override) for override in decoding or [] if override not in others]
    tree = {
        "model": model,
        "data": {"train": data, "max_len": max_len, "pad_response_to": pad_response_to},
        "out": str(out),
        "beside": beside,
        "rows": rows,
        "generate_batch": batch,
        "decoding": decoding_tree(length, steps, block),
    } | loading_of(base, family, dtype, attention, end_token, trust_remote_code, allow_pickle)
    settings = in_trained_blocks(check_command("eval", tree, [*of_decoding, *others]))
    from stabledllm.evaluation.run import evaluate as run
    from stabledllm.experiment.idle import idle_in_eval
    from stabledllm.runtime.launched import is_main_process

    notes = idle_in_eval(settings, others)
    if is_main_process():
        say_all(notes)
    run(settings, say)
