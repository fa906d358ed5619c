"""What the old policy and the reference say of a round's responses, for the draws of each of its steps.

Legend: n responses of the round, R replicates, T tokens of the longest response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import gather_object
from torch import Tensor

from stabledllm.models.evaluating import evaluating_as_trained
from stabledllm.runtime.showing import bar

if TYPE_CHECKING:
    from stabledllm.data.token_rows import TokenRow
    from stabledllm.training.policy import GRPOTrainer

OLD, REFERENCE = "old", "reference"


def values_of_round(trainer: GRPOTrainer, rows: list[TokenRow], first: int, end: int) -> tuple[dict[str, Tensor], int]:
    """The estimates under the model as it is now and under the reference, in the steps from ``first`` to ``end``.

    At the first step the old policy is the current one, so that only the reference is asked there.

    Returns:
        tables by name, ``old/STEP`` and ``reference/STEP``, each (n, R) or (n, T), the same on every rank; and the
        forward rows that they took on all ranks.
    """
    at_once = trainer.args.per_device_train_batch_size * trainer.rollouts.group
    chunks = [range(start, min(start + at_once, len(rows))) for start in range(0, len(rows), at_once)]
    steps = range(first if trainer.reference else first + 1, end)
    work = [(step, chunk) for step in steps for chunk in chunks]
    found: list[tuple[str, int, Tensor, int]] = []
    own = trainer.ranks.share(work)
    model = trainer.bare
    with evaluating_as_trained(model), bar(len(own) * at_once, "old policy and reference", "response") as shown:
        for step, chunk in own:
            found += _of_chunk(trainer, model, [rows[i] for i in chunk], chunk, step, old=step > first)
            shown.update(len(chunk))
    tables: dict[str, Tensor] = {}
    together, forwards = {each[:2]: each for each in gather_object(found)}, 0
    for (name, start), (_, _, values, rows_made) in sorted(together.items()):
        table = tables.setdefault(name, values.new_zeros(len(rows), _width(rows, values, trainer)))
        table[start : start + len(values), : values.shape[1]] = values
        forwards += rows_made
    return tables, forwards


def part_of(table: Tensor, numbers: list[int], like: Tensor) -> Tensor:
    """The values of some responses, in the shape, precision and place of other estimates of them."""
    return table[numbers, : like.shape[1]].to(like)


def _of_chunk(trainer, model, rows, chunk: range, step: int, *, old: bool) -> list[tuple[str, int, Tensor, int]]:
    draws = trainer.draw(rows, list(chunk), step)
    found = []
    if old:
        with trainer.accelerator.autocast():
            found.append((OLD, draws.values(model)))
    if trainer.reference:
        found.append((REFERENCE, trainer.of_reference(model, draws, list(chunk), None)))
    return [(f"{name}/{step}", chunk.start, values.cpu(), draws.forward_rows) for name, values in found]


def _width(rows, values: Tensor, trainer) -> int:
    return max(row.response_length for row in rows) if trainer.estimator.of_tokens else values.shape[1]
