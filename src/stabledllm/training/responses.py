"""What Trainers of pairs and of policy gradients share: losses of estimated log-likelihoods of responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.likelihood.interface import Draws
from stabledllm.preference.reference import Reference, silence_dropout
from stabledllm.training.trainer import MDMTrainer


def refuse_sharded(kind: str = "dpo", *, fsdp: bool, deepspeed: bool) -> None:
    """Refuse weights that are divided over devices: a step has several backward passes, and a second model.

    Raises:
        UserError: they are.
    """
    if fsdp or deepspeed:
        found = "FSDP" if fsdp else "DeepSpeed"
        raise UserError(
            f"objective.kind={kind}: expected whole weights on every device, found {found}; launch without it."
        )


class ResponseTrainer(MDMTrainer):
    """A Trainer with a backward pass for each forward of its draws, and a model that the policy is held against.

    Args:
        reference: makes the policy's reference once the policy is on its device; called with the Trainer. It may be
            None where the loss has none. The other arguments are those of :class:`MDMTrainer`.
    """

    kind: str
    """The ``objective.kind`` that it trains."""

    def __init__(self, *, reference: Callable[[ResponseTrainer], Reference | None], **kwargs):
        super().__init__(**kwargs)
        refuse_sharded(self.kind, fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled)
        silence_dropout(self.model)
        self.reference = reference(self)

    def of_reference(self, policy, draws: Draws, numbers: Sequence[int], epoch: int | None) -> Tensor:
        """The reference's values in the policy's precision: a Trainer gives autocast to the model that it trains alone.

        Rounding that only one of the two has would be noise that they do not share.
        """
        with self.accelerator.autocast():
            return self.reference.values(policy, draws, numbers, epoch)

    def back_through(self, model, draws: Draws, slopes: Tensor) -> Tensor:
        """Make all backward passes of ``sum(slopes * values)`` but the last, whose scalar is returned.

        Ranks exchange gradients only in the last one.
        """
        parts = iter(draws.parts(model, slopes))
        with self.accelerator.no_sync(model):
            for _ in range(draws.passes - 1):
                self.accelerator.backward(next(parts))
        return next(parts)
