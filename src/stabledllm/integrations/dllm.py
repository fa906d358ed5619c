"""dllm's MDLMTrainer and BD3LMTrainer with any of this library's methods: a mixin, since they draw t and masks inline.

The lines to change, from ``MDLMTrainer(model=model, args=args, ...)``::

    class Trainer(DllmNoise, MDLMTrainer):
        pass

    trainer = Trainer(model=model, args=args, method="ppots+mirror", p_of_t="fit/p_of_t.json", ...)

Legend: B rows, N rows of the forward (views flattened in), L positions, M masked positions.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.integrations.noise import Noise, NoisyRows
from stabledllm.integrations.trainer import StepRows
from stabledllm.loss import reduce_loss, token_losses
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import MethodOptions
from stabledllm.noise.objective import Objective

WEIGHTINGS = {"scheduler": "elbo", "uniform": "unweighted"}
"""dllm's ``loss_weight_type`` and the objective's weighting that is the same. A schedule's own weight is the bound."""
NORMALIZATIONS = {"token": "token", "sequence": "row", "batch": "token"}
"""dllm's ``loss_norm_type`` and how the objective weighs rows; ``batch`` is the sum over a row's tokens, by rows."""


class DllmNoise(StepRows):
    """A mixin to the left of dllm's ``MDLMTrainer`` or ``BD3LMTrainer``: the same mean loss, with less noise.

    t comes from the method's source, spread over the whole optimizer step: all ranks and accumulation. Micro-batches
    are normalised as dllm does (``loss_norm_type``), so that the mean of every micro-batch's loss and gradient is
    dllm's own, for every unbiased method. ``right_shift_logits``, ``time_epsilon``, ``loss_weight_type`` and dllm's
    metrics keep their meaning, ``args.seed`` is the noise's seed, and evaluation stays dllm's.

    Args:
        method: any method of :class:`~stabledllm.integrations.Noise`; every view is a forward.
        p_of_t: the saved density of a method with ppots, or a ``TSampler``. options: of the method's parts.
        args, kwargs: those of dllm's trainer.

    Raises:
        UserError: a scheduler (the method draws t), a loss weight or a normalisation that is not one of dllm's own
            trainers, or a method that cannot be used here.
    """

    def __init__(
        self,
        *args,
        method: str = "standard",
        p_of_t: str | Path | TSampler | None = None,
        options: MethodOptions | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if kwargs.get("scheduler", args[1] if len(args) > 1 else None) is not None:
            raise UserError(
                "DllmNoise: expected no scheduler, as the method draws t, found one; P-POTS is method='ppots'."
            )
        if self.processing_class.mask_token_id is None:
            raise UserError("DllmNoise: expected a tokenizer with a mask token, found mask_token_id None.")
        objective = Objective(
            weighting=_known(WEIGHTINGS, "loss_weight_type", self.loss_weight_type),
            normalization=_known(NORMALIZATIONS, "loss_norm_type", self.loss_norm_type),
            eps=self.time_epsilon,
        )
        self.noise = Noise(
            method, mask_id=self.processing_class.mask_token_id, p_of_t=p_of_t, objective=objective,
            options=options, seed=self.args.seed,
        )  # fmt: skip

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """dllm's loss of one micro-batch with this step's noise; in evaluation dllm's own."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        place = self.take_place(inputs)
        inputs = self._preprocess_inputs(inputs)
        ids, maskable = inputs["input_ids"], inputs["labels"] != -100
        size = maskable.sum(1)
        divisor = float(size.sum()) if self.loss_norm_type == "token" else float(len(ids))
        taken = self.draw_rows(ids, maskable, place, divisor)
        attention = inputs.get("attention_mask")
        outputs = self._postprocess_outputs(
            self._forward(model, taken, None if attention is None else attention[taken.source])
        )
        # A block-diffusion forward also has the clean copy's logits, on the right.
        logits = outputs.logits[:, : ids.shape[1]][taken.mask]
        nll = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), taken.targets[taken.mask],
                              reduction="none")  # fmt: skip
        tokens = token_losses(nll, taken.draw.mask, taken.draw.coefficient, taken.draw.active).sum(1)
        self.meter.update(split="train", value=(tokens * size[:, None]).detach(), weight=maskable.to(tokens.dtype))
        loss = reduce_loss(tokens.sum(1), taken.row_weight, divisor)
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model, taken: NoisyRows, attention_mask: Tensor | None):
        """The model's outputs for noisy rows; in BD3LMTrainer for noisy and clean copies, under its attention."""
        if not hasattr(self, "block_size"):
            return model(input_ids=taken.input_ids, attention_mask=attention_mask)
        rows, length = taken.input_ids.shape
        places = torch.arange(length, device=taken.input_ids.device).repeat(2).expand(rows, -1)
        implementation = self.accelerator.unwrap_model(model).config._attn_implementation
        return model(
            input_ids=torch.cat((taken.input_ids, taken.targets), dim=1),
            attention_mask=block_attention(length, self.block_size, places.device, implementation),
            position_ids=places,
        )


def block_attention(length: int, block_size: int, device: torch.device, implementation: str):
    """The attention of block diffusion over [noisy | clean], for ``sdpa`` a bool tensor of shape (1, 1, 2L, 2L).

    A noisy token sees the noisy tokens of its block and the clean ones of earlier blocks; a clean token sees the clean
    ones up to its block. Source: BD3-LM (arXiv:2503.09573).

    Raises:
        UserError: an attention that takes no such mask.
    """

    def seen(batch, head, query, key):
        own, other = query % length // block_size, key % length // block_size
        clean_query, clean_key = query >= length, key >= length
        earlier = clean_key & (other < own)
        return earlier | ((own == other) & (clean_query == clean_key))

    if implementation == "sdpa":
        index = torch.arange(2 * length, device=device)
        return seen(None, None, index[:, None], index[None, :])[None, None]
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(seen, B=None, H=None, Q_LEN=2 * length, KV_LEN=2 * length, device=str(device))
    raise UserError(f"DllmNoise: expected attn_implementation sdpa or flex_attention, found '{implementation}'.")


def _known(table: dict[str, str], key: str, value: str) -> str:
    if value not in table:
        raise UserError(f"DllmNoise: {key}: expected one of {', '.join(table)}, found '{value}'.")
    return table[value]
