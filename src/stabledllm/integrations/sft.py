"""TRL's ``SFTTrainer``, or any transformers Trainer, with a masked diffusion model and this library's noise.

The lines to change, from ``SFTTrainer(model=model, args=args, ...)``::

    class Trainer(SFTNoise, SFTTrainer):
        pass

    trainer = Trainer(model=model, args=args, noise=Noise("ppots+mirror", mask_id=..., p_of_t=..., seed=42), ...)
"""

from __future__ import annotations

from stabledllm.errors import UserError
from stabledllm.integrations.collator import noisy_batch, weighted_loss
from stabledllm.integrations.noise import Noise
from stabledllm.integrations.trainer import StepRows


class SFTNoise(StepRows):
    """A mixin to the left of TRL's ``SFTTrainer`` or transformers' ``Trainer``: the bound, with less noise.

    The user's own collator runs as it is, in any number of workers; the noise comes in the step, which it spans over
    ranks and accumulation. The loss is the mean over the rows of the whole step.

    Args:
        noise: what is drawn. shift: whether the model's logits predict the next token. The others are the trainer's.

    Raises:
        UserError: in evaluation, where the trainer's own loss would be that of next-token prediction.
    """

    def __init__(self, *args, noise: Noise, shift: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.noise, self.shift = noise, shift
        # The loss is a part of the step's mean already; the second name is that of transformers before 5.
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = True

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """The micro-batch's part of the step's mean loss."""
        if not model.training:
            raise UserError(
                "SFTNoise: expected no evaluation in the trainer, as it scores next tokens; use stabledllm.elbo."
            )
        place = self.take_place(inputs)
        noisy = noisy_batch(inputs, self.noise, self.state.global_step, place.position, place.step_rows)
        passed = {name: noisy[name] for name in ("input_ids", "attention_mask", "position_ids") if name in noisy}
        outputs = model(**passed)
        loss = weighted_loss(outputs.logits, noisy, shift=self.shift)
        # Gradients are averaged over ranks, while the parts of the step add up.
        loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss
