"""A collator around the user's own that returns noisy rows, labels and the tokens' weights in the step.

The lines to change in a loop of one's own with ``DataLoader(..., num_workers=0)``::

    loader = DataLoader(rows, collate_fn=NoisyCollator(collator, noise, rows=2, accumulation=4))
    loss = weighted_loss(model(batch["input_ids"], batch["attention_mask"]).logits, batch)

TRL's ``SFTTrainer`` collates ahead of the step, and for evaluation too: there the collator stays as it is and
:class:`~stabledllm.integrations.SFTNoise` draws in the step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from stabledllm.errors import UserError
from stabledllm.integrations.noise import Noise
from stabledllm.integrations.step import step_positions
from stabledllm.integrations.weighted import of_rows, weighted_rows


def noisy_batch(batch: dict, noise: Noise, step: int, positions: Tensor, step_rows: int) -> dict:
    """A collated batch with its noise: noisy ``input_ids``, ``labels`` and ``loss_weights``, every view a row.

    The tokens that may be masked are those with a label other than -100, or, in a batch without labels, those with
    ``completion_mask`` 1. The weighted cross-entropies of a step's micro-batches add up to the step's mean, in which a
    row without such tokens (its completion was cut off) counts as 0.

    Args:
        batch: tensors of B rows: ``input_ids``, and ``labels`` or ``completion_mask``; others are repeated for views.

    Raises:
        UserError: a batch without either, rows laid end to end, or the token mean, which needs the whole step.
    """
    if noise.objective.normalization != "row":
        raise UserError("NoisyCollator: expected objective.normalization=row: a batch does not know the step's tokens.")
    ids = batch["input_ids"]
    if "attention_mask" not in batch and "position_ids" in batch:
        raise UserError(
            "NoisyCollator: expected one example in a row, found rows laid end to end; set padding_free=False."
        )
    if "labels" in batch:
        maskable = batch["labels"] != -100
    elif "completion_mask" in batch:
        maskable = batch["completion_mask"].bool()
    else:
        raise UserError(f"NoisyCollator: expected labels or completion_mask in the batch, found {', '.join(batch)}.")
    taken = weighted_rows(noise, ids, maskable, step, positions, step_rows)
    return of_rows(batch, taken.source, len(ids)) | {
        "input_ids": taken.input_ids,
        "labels": torch.where(taken.mask, taken.targets, -100),
        "loss_weights": taken.weights.float(),
    }


def weighted_loss(logits: Tensor, batch: dict, *, shift: bool = False) -> Tensor:
    """A micro-batch's part of the step's mean loss, in nats; ``shift`` for models that predict the next token.

    >>> batch = {"labels": torch.tensor([[1, -100]]), "loss_weights": torch.tensor([[0.5, 0.0]])}
    >>> weighted_loss(torch.zeros(1, 2, 2), batch)
    tensor(0.3466)
    """
    if shift:
        logits = torch.cat((logits[:, :1], logits[:, :-1]), dim=1)
    masked = batch["labels"] != -100
    wide = logits[masked].to(torch.promote_types(logits.dtype, torch.float32))
    return (F.cross_entropy(wide, batch["labels"][masked], reduction="none") * batch["loss_weights"][masked]).sum()


class NoisyCollator:
    """A collator that adds the step's noise to what the user's own returns; see :func:`noisy_batch`.

    It knows the step by counting its own calls: ``accumulation`` of them make a step. So it must run in the process
    that trains, be called for training alone, and be told after a resume: ``start(step)``.

    Args:
        collator: the user's own. noise: what is drawn. accumulation: micro-batches of a step on this rank.
        rows: rows of a micro-batch. A smaller one, at an epoch's end, gives the mean over its own rows where it is the
            whole step; in a step of several every row still counts 1 / (rows of a full step).
        rank, ranks: those of torch.distributed without them, if it is initialised.
        strided: how the sampler deals rows to ranks, as in :func:`~stabledllm.integrations.step_positions`.

    Raises:
        UserError: in a worker process, or where a batch has more than ``rows`` rows.
    """

    def __init__(
        self, collator: Callable, noise: Noise, *, rows: int, accumulation: int = 1, rank: int | None = None,
        ranks: int | None = None, strided: bool = True,
    ):  # fmt: skip
        self.collator, self.noise, self.rows, self.accumulation = collator, noise, rows, accumulation
        if ranks is None and dist.is_available() and dist.is_initialized():
            rank, ranks = dist.get_rank(), dist.get_world_size()
        self.rank, self.ranks, self.strided = rank or 0, ranks or 1, strided
        self.start(0)

    def start(self, step: int) -> None:
        """Continue with the first micro-batch of this step."""
        self._calls = step * self.accumulation

    def __call__(self, features, *args, **kwargs) -> dict:
        if get_worker_info() is not None:
            raise UserError(
                "NoisyCollator: expected num_workers=0: a worker process runs ahead and cannot know the step; "
                "or draw in the step, with Noise.draw or SFTNoise."
            )
        batch = self.collator(features, *args, **kwargs)
        step, micro_batch = divmod(self._calls, self.accumulation)
        held = len(batch["input_ids"])
        if held > self.rows:
            raise UserError(f"NoisyCollator: expected at most rows={self.rows} rows in a micro-batch, found {held}.")
        alone = self.accumulation == self.ranks == 1  # the batch is the step, the smaller last one of an epoch too
        sizes = [held] if alone else [self.rows] * self.accumulation
        positions, step_rows = step_positions(sizes, rank=self.rank, ranks=self.ranks, strided=self.strided)
        noisy = noisy_batch(batch, self.noise, step, positions[micro_batch][:held], step_rows)
        self._calls += 1
        return noisy
