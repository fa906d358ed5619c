"""TRL's ``GRPOTrainer`` with a masked diffusion model: responses by our decoding, likelihoods by shared draws.

Legend: B responses of a micro-batch, T positions of the longest response, U inner updates (TRL's ``num_iterations``).
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl.trainer.callbacks import SyncRefModelCallback

from stabledllm.data.rows import TokenRow
from stabledllm.decoding import DecodingOptions, generate, refuse_unsuited
from stabledllm.errors import UserError
from stabledllm.integrations.trl.package import check_hooks
from stabledllm.integrations.trl.shared import (
    EVAL_SEED,
    all_but_the_last,
    by_name,
    checked_estimator,
    ready,
    refuse_after,
    refuse_options,
    rows_of,
)
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.interface import Draws, Estimator
from stabledllm.models.evaluating import evaluating, evaluating_beside
from stabledllm.preference.reference import silence_dropout

HOOKS = (
    "_generate_single_turn", "_generate_and_score_completions", "_get_per_token_logps_and_entropies", "_compute_loss",
    "_prepare_inputs",
)  # fmt: skip
_OFF = {
    "use_vllm": False, "use_transformers_continuous_batching": False, "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0, "entropy_coef": 0.0, "use_adaptive_entropy": False, "top_k": 0, "min_p": None,
    "repetition_penalty": 1.0, "generation_kwargs": None, "cache_implementation": None, "cast_lm_head_to_fp32": False,
    "use_liger_kernel": False,
}  # fmt: skip
_NUMBERS = "response_numbers"
"""What a batch carries beside TRL's entries: the responses' numbers in their round, shape (B,)."""
BLOCK = 32
"""The most tokens of a block that is decoded at once, where nothing is said."""


class MaskedGRPO:
    """A mixin to the left of TRL's ``GRPOTrainer``, whose rewards, advantages, losses and logs stay as they are.

    Old policy, reference and policy are estimated on the same draws, functions of ``args.seed``, the round, the inner
    update and the response's number: any number of ranks gives the same, and so does a run resumed between two rounds.
    Every inner update has draws of its own. An estimator of whole responses shares its value out over the tokens
    evenly: every token's ratio is then that of the response divided by its tokens, and ``loss_type="grpo"`` weighs
    responses alike. Tokens that an estimator does not score are left out of the means. Dropout is switched off for
    good. Each forward has a backward of its own, so that memory does not grow with the budget.

    Args:
        estimator: of the log-likelihoods of responses or their tokens; without it the bound from 2 forwards of each.
        decoding: how responses are drawn; its length must be ``args.max_completion_length``, while temperature, top_p
            and seed are those of ``args``. Without it one token a call, in blocks of at most 32 or of the model's.
        generate_batch: responses decoded at once; changes memory and speed alone. Without it a whole round's.
        args, kwargs: those of TRL's trainer.

    Raises:
        UserError: an argument that means nothing to a masked diffusion model.
    """

    def __init__(
        self,
        *args: Any,
        estimator: Estimator | None = None,
        decoding: DecodingOptions | None = None,
        generate_batch: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_hooks(type(self), MaskedGRPO, HOOKS)
        given = by_name(super().__init__, args, kwargs)
        name, config = type(self).__name__, given.get("args")
        self.estimator = BoundEstimator(budget=2) if estimator is None else checked_estimator(estimator, name)
        refuse_options(name, config, _OFF)
        for key in ("tools", "environment_factory"):
            if given.get(key):
                raise UserError(f"{name}: expected no {key}, since responses are decoded whole; leave it out.")
        if generate_batch is not None and generate_batch < 1:
            raise UserError(f"{name}: expected generate_batch of at least 1, found {generate_batch}.")
        model = given["model"] = ready(given.get("model"), name)
        adapted = given.get("peft_config") is not None or is_peft_model(model)
        # TRL would load the reference by a name that it may not have.
        reference = copy.deepcopy(model) if getattr(config, "beta", 0.0) and not adapted else None
        with _without_reference(config if reference is not None else None):
            super().__init__(**given)
        refuse_after(self)
        if reference is not None:
            self._hold_reference(reference)
        silence_dropout(self.model)  # an adapter's, which TRL has added
        self.generate_batch = generate_batch
        self.decoding = self._decoding(decoding)
        self._numbers: list[int] = []
        self._evaluated = 0
        self._values: Tensor | None = None

    def _hold_reference(self, reference: nn.Module) -> None:
        """Keep the copy as TRL keeps a reference, and follow the policy where that is asked for."""
        self.beta = self.args.beta
        self.ref_model = self.accelerator.prepare_model(reference.requires_grad_(False), evaluation_mode=True)
        if self.args.sync_ref_model:
            self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))

    def _decoding(self, asked: DecodingOptions | None) -> DecodingOptions:
        """The options of decoding, with what TRL's arguments say."""
        length = self.args.max_completion_length
        if asked is None:
            most = getattr(self.model.config, "block_size", None) or BLOCK
            block = next(size for size in range(min(most, length), 0, -1) if length % size == 0)
            asked = DecodingOptions(length=length, steps=length, block=block)
        elif asked.length != length:
            raise UserError(
                f"{type(self).__name__}: expected decoding.length {length}, that of max_completion_length, found "
                f"{asked.length}."
            )
        if named := next((x for x in ("logits_eos_inf", "confidence_eos_eot_inf") if getattr(asked, x)), None):
            raise UserError(
                f"{type(self).__name__}: expected no decoding.{named}, since the tokenizer names one end token alone."
            )
        refuse_unsuited(self.model, asked)
        return replace(asked, temperature=self.args.temperature, top_p=self.args.top_p, seed=self.args.seed)

    # -- rounds -------------------------------------------------------------------------------------------------------

    @property
    def _round(self) -> int:
        """The number of earlier rounds: of the times that responses were drawn in training."""
        return self._step // (self.args.steps_per_generation * self.num_iterations)

    def _prepare_inputs(self, generation_batch):
        if self.model.training and self._buffered_inputs is None:
            # TRL counts micro-batches from 0 after a resume as well; rounds and draws must go on where they were.
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super()._prepare_inputs(generation_batch)

    def evaluate(self, *args, **kwargs):
        self._evaluated = 0
        return super().evaluate(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        """TRL's, with the number of every response, which its noise is a function of."""
        first = len(inputs) * self.accelerator.process_index
        if not self.model.training:
            first += self._evaluated
            self._evaluated += len(inputs) * self.accelerator.num_processes
        self._numbers = list(range(first, first + len(inputs)))
        output = super()._generate_and_score_completions(inputs)
        return output | {_NUMBERS: torch.tensor(self._numbers, device=self.accelerator.device)}

    def _generate_single_turn(self, prompt_ids, images, *args, **kwargs):
        """Responses by decoding, each with its end token where it has one."""
        if images is not None:
            raise UserError(f"{type(self).__name__}: expected prompts of text, found pictures.")
        tokenizer, model = self.processing_class, self.accelerator.unwrap_model(self.model_wrapped)
        training, every = self.model.training, self.generate_batch or len(prompt_ids)
        options = self.decoding if training else replace(self.decoding, seed=EVAL_SEED)
        first = self._numbers[0] + (self._round * self.args.generation_batch_size if training else 0)
        responses: list[list[int]] = []
        with evaluating(model), self.accelerator.autocast():
            for start in range(0, len(prompt_ids), every):
                responses += generate(
                    model, prompt_ids[start : start + every], options, mask_id=model.config.mask_token_id,
                    eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id, first=first + start,
                )  # fmt: skip
        ended = [tokenizer.eos_token_id]
        return [ids + ended if len(ids) < options.length else ids for ids in responses], None

    # -- log-likelihoods ----------------------------------------------------------------------------------------------

    def _draws(self, rows: list[TokenRow], numbers: list[int], update: int) -> Draws:
        """The draws of responses for an inner update of the current round, or those of held-out ones."""
        training = self.model.training
        seed, step = (self.args.seed, self._round * self.num_iterations + update) if training else (EVAL_SEED, 0)
        return self.estimator.draw(self.accelerator.unwrap_model(self.model), rows, numbers, seed=seed, step=step)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **ignored
    ):
        """Values of tokens: in the loss of its draws, (B, T); before it of those of every inner update, (B, U, T)."""
        if self._values is not None:
            return self._values, torch.full_like(self._values.detach(), torch.nan), None
        completion_mask = attention_mask[:, -logits_to_keep:]
        rows = _responses(input_ids, attention_mask, completion_mask, self._numbers)
        values = []
        for update in range(self.num_iterations if self.model.training else 1):
            draws = self._draws(rows, self._numbers, update)
            with torch.no_grad(), self.accelerator.autocast(), evaluating_beside(self.model, model):
                values.append(_of_tokens(draws.values(model), draws, completion_mask))
        return torch.stack(values, 1), None, None

    def _compute_loss(self, model, inputs):
        """TRL's own loss of the values, then a backward pass for each forward pass."""
        update = (self._step // self.args.steps_per_generation) % self.num_iterations if self.model.training else 0
        completion_mask, numbers = inputs["completion_mask"], inputs[_NUMBERS].tolist()
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention_mask = torch.cat([inputs["prompt_mask"], completion_mask], 1)
        draws = self._draws(_responses(ids, attention_mask, completion_mask, numbers), numbers, update)
        estimates = draws.values(model).requires_grad_()
        taken = dict(inputs)
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            if name in taken:
                taken[name] = taken[name][:, update]
        if draws.scored is not None:
            taken["tool_mask"] = _padded(draws.scored.to(completion_mask), completion_mask)
        with self._values_are(estimates, draws, completion_mask):
            loss = super()._compute_loss(model, taken)
        if not self.model.training:
            return loss.detach()
        (slopes,) = torch.autograd.grad(loss, estimates)
        last = all_but_the_last(self, model, iter(draws.parts(model, slopes)), draws.passes)
        # The value of the loss, with the gradient of the last part alone.
        return loss.detach() + (last - last.detach())

    @contextmanager
    def _values_are(self, estimates: Tensor, draws: Draws, completion_mask: Tensor):
        """While TRL computes its loss: the values of tokens are these, and no entropy is known."""
        with torch.enable_grad():
            self._values = _of_tokens(estimates, draws, completion_mask)
            try:
                yield
            finally:
                self._values = None
                self._metrics["train" if self.model.training else "eval"].pop("entropy", None)


@contextmanager
def _without_reference(config: Any):
    """Keeps TRL's constructor from making a reference; the arguments are afterwards as they were."""
    if config is None:
        yield
        return
    beta, sync = config.beta, config.sync_ref_model
    config.beta, config.sync_ref_model = 0.0, False
    try:
        yield
    finally:
        config.beta, config.sync_ref_model = beta, sync


def _responses(ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, numbers: list[int]) -> list[TokenRow]:
    """The rows of prompts and responses, padded in front and behind."""
    prompt = torch.zeros_like(ids[:, : ids.shape[1] - completion_mask.shape[1]])
    origins = [f"response {number} (from 0) of the round" for number in numbers]
    return rows_of(ids, attention_mask, torch.cat([prompt, completion_mask], 1), origins)


def _of_tokens(values: Tensor, draws: Draws, completion_mask: Tensor) -> Tensor:
    """Values of tokens, shape (B, T): as they are, or a response's mean over replicates shared out evenly."""
    if draws.scored is not None:
        return _padded(values, completion_mask)
    return (values.mean(1) / draws.tokens)[:, None] * completion_mask


def _padded(of_tokens: Tensor, completion_mask: Tensor) -> Tensor:
    """Values of the tokens of these responses, with zeros up to the width of the round's longest."""
    return nn.functional.pad(of_tokens, (0, completion_mask.shape[1] - of_tokens.shape[1]))
