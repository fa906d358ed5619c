"""The command ``stabledllm merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabledllm.cli.options import Base, path
from stabledllm.cli.printing import answer


def merge(
    adapter: Annotated[str, typer.Argument(help="A folder with an adapter, such as a LoRA run's out/model.")],
    out: Annotated[Path, typer.Option(parser=path, help="Folder for the merged model.")],
    base: Base = None,
    dtype: Annotated[str, typer.Option(help="Of the written weights: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Add an adapter to its base's weights and write the whole model, in the base's own layout."""
    from stabledllm.experiment.commands_at_once import check_command

    check_command("merge", {"adapter": adapter, "base": base, "dtype": dtype, "out": str(out)})
    import torch

    from stabledllm.cli.new_folders import new_folder
    from stabledllm.models.adapters import merged
    from stabledllm.models.loading import load_model
    from stabledllm.models.soundness import check_finite

    with new_folder(out, "merge") as (folder, _):
        # The sum is made in float32 whatever dtype is written, so that it is rounded once.
        whole = merged(load_model(adapter, base=base))
        whole.model.to(getattr(torch, dtype))
        check_finite(whole.model, f"merge '{adapter}' in {dtype}")
        whole.save(folder)
    answer(f"wrote {out}")
