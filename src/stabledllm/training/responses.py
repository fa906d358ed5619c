"""What Trainers of pairs and of policy gradients share: losses of estimated log-likelihoods of responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from stabledllm.likelihood.interface import Draws
from stabledllm.preference.reference import FrozenModel, Reference, silence_dropout
from stabledllm.training.devices import fsdp_version, refuse_sharding_in_parts
from stabledllm.training.diverged import ending_where_not_finite
from stabledllm.training.equal_passes import before_the_last_backward
from stabledllm.training.gathered import gathered
from stabledllm.training.trainer import MDMTrainer


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
        refuse_sharding_in_parts(self.kind, fsdp_version=fsdp_version(self), deepspeed=self.is_deepspeed_enabled)
        silence_dropout(self.model)
        self.reference = reference(self)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """A step's micro-batches, for which responses may be drawn."""
        with self._ending_where_not_finite():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, *args, **kwargs) -> Tensor:
        """A micro-batch's passes, of which an estimate that is not finite ends the run as a loss does."""
        with self._ending_where_not_finite():
            return super().training_step(*args, **kwargs)

    def _ending_where_not_finite(self) -> AbstractContextManager:
        """The run's end with a record. Of several ranks one alone may find it while the others wait for it elsewhere:
        there the error ends its process, and the launcher the others."""
        return ending_where_not_finite(self.state.global_step + 1) if self.args.world_size == 1 else nullcontext()

    def of_reference(self, policy, draws: Draws, numbers: Sequence[int], epoch: int | None) -> Tensor:
        """The reference's values in the policy's precision: a Trainer gives autocast to the model that it trains alone.

        Rounding that only one of the two has would be noise that they do not share.
        """
        with self.accelerator.autocast():
            return self.reference.values(policy, draws, numbers, epoch)

    def gathered(self) -> AbstractContextManager:
        """A context in which ranks run forwards of policy and reference, of any number; every rank must open it.

        Where the weights are sharded, each rank holds all those of both models in it.
        """
        if not self.is_fsdp_enabled:
            return nullcontext()
        models = [self.model]
        if isinstance(self.reference, FrozenModel):
            models.append(self.reference.placed(self.model))
        flag = bool(self.accelerator.state.fsdp_plugin.reshard_after_forward)
        return gathered(*models, reshard_after_forward=flag)

    def back_through(self, model, draws: Draws, slopes: Tensor) -> Tensor:
        """Make all backward passes of ``sum(slopes * values)`` but the last, whose scalar is returned.

        Where the weights are sharded the draws are those of :func:`~stabledllm.training.equal_passes.equal_passes`.
        """
        parts = iter(draws.parts(model, slopes))
        with before_the_last_backward(self, model):
            for _ in range(draws.passes - 1):
                self.accelerator.backward(next(parts))
        return next(parts)
