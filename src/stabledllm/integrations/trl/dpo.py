"""TRL's ``DPOTrainer`` with a masked diffusion model: bounds in place of log-likelihoods, on shared draws.

Legend: B pairs of a micro-batch, R replicates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from trl.trainer.utils import use_adapter

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
from stabledllm.models.evaluating import evaluating, evaluating_as_trained
from stabledllm.preference.loss import DPOLoss, PairLosses
from stabledllm.preference.reference import silence_dropout

NUMBER = "pair_number"
"""The column of a pair's place in its data, which its noise is a function of."""
HOOKS = ("_prepare_dataset", "_precompute_ref_logps", "compute_ref_log_probs", "_compute_loss")
_OFF = {"f_divergence_type": "reverse_kl", "ld_alpha": None, "use_weighting": False, "use_liger_kernel": False}


class Numbered:
    """A collator that carries the pairs' numbers beside what the user's own returns."""

    def __init__(self, collator: Callable[[list[dict]], dict]):
        self.collator = collator

    def __call__(self, rows: list[dict]) -> dict:
        return self.collator(rows) | {NUMBER: torch.tensor([row[NUMBER] for row in rows])}


class MaskedDPO:
    """A mixin to the left of TRL's ``DPOTrainer``: the loss of pairs from bounds, both models on the same draws.

    The draws are functions of ``args.seed``, the epoch and the pair's place in the data: the same on any number of
    ranks, and after a resume. ``args.beta``, ``loss_type=["sigmoid"]`` or ``["sigmoid", "sft"]`` with ``loss_weights``,
    LoRA (the reference is the adapter switched off), ``ref_model``, ``precompute_ref_log_probs`` (for one epoch) and
    evaluation keep their meaning; the SFT term is the mean over pairs of the bound on the NLL per token. Without
    ``ref_model`` the reference is a copy of the model as it is given. Dropout is switched off for good. Each forward
    has a backward of its own, so that memory does not grow with the budget.

    Args:
        estimator: of the log-likelihoods of whole responses; without it the bound from 8 forwards of each.
        correction: ``none`` or ``jackknife``, which takes the noise's bias off the loss; see
            :class:`~stabledllm.preference.loss.DPOLoss`.
        args, kwargs: those of TRL's trainer.

    Raises:
        UserError: another loss, or an argument that means nothing to a masked diffusion model.
    """

    loss_is_scaled_for_ga = True
    """The backward passes that are made here must be scaled here, so the last one is as well."""

    def __init__(self, *args: Any, estimator: Estimator | None = None, correction: str = "none", **kwargs: Any) -> None:
        check_hooks(type(self), MaskedDPO, HOOKS)
        given = by_name(super().__init__, args, kwargs)
        name, config = type(self).__name__, given.get("args")
        refuse_options(name, config, _OFF)
        self._precomputed_draws = getattr(config, "precompute_ref_log_probs", False)
        self._refuse_loss(name, config, given, correction)
        self.estimator = BoundEstimator(budget=8) if estimator is None else checked_estimator(estimator, name)
        if self.estimator.of_tokens:
            raise UserError(f"{name}: expected an estimator of whole responses, found one of tokens.")
        model = given["model"] = ready(given.get("model"), name)
        adapted = given.get("peft_config") is not None or is_peft_model(model)
        if given.get("ref_model") is not None:
            ready(given["ref_model"], name)
        elif not adapted and not self._precomputed_draws:
            given["ref_model"] = copy.deepcopy(model)  # TRL would load it by a name that it may not have
        super().__init__(**given)
        refuse_after(self)
        silence_dropout(self.model)  # an adapter's, which TRL has added
        weights = dict(zip(self.loss_types, self.loss_weights, strict=True))
        self.sigmoid_weight = weights["sigmoid"]
        self.pair_loss = DPOLoss(self.beta, correction, weights.get("sft", 0.0) / self.sigmoid_weight)

    def _refuse_loss(self, name: str, config: Any, given: dict, correction: str) -> None:
        """Refuse losses that are not known here, and a precomputed reference where it is not enough."""
        kinds, weights = getattr(config, "loss_type", ["sigmoid"]), getattr(config, "loss_weights", None)
        if sorted(kinds) not in (["sigmoid"], ["sft", "sigmoid"]):
            raise UserError(f"{name}: expected loss_type ['sigmoid'] or ['sigmoid', 'sft'], found {kinds}.")
        if weights is not None and not dict(zip(kinds, weights, strict=False)).get("sigmoid", 0.0) > 0:
            raise UserError(f"{name}: expected a weight above 0 for 'sigmoid' in loss_weights, found {weights}.")
        if given.get("compute_metrics") is not None:
            raise UserError(
                f"{name}: expected no compute_metrics, since there are no logits of a response; leave it out."
            )
        if self._precomputed_draws and correction == "jackknife":
            raise UserError(
                f"{name}: expected correction='none' beside precompute_ref_log_probs, which keeps the mean of the "
                f"replicates alone, found 'jackknife'."
            )
        if self._precomputed_draws and config.max_steps <= 0 and config.num_train_epochs > 1:
            raise UserError(
                f"{name}: expected num_train_epochs=1 beside precompute_ref_log_probs, as every epoch has draws of its "
                f"own, found {config.num_train_epochs:g}; leave precompute_ref_log_probs out."
            )

    # -- what TRL's loader carries ------------------------------------------------------------------------------------

    @property
    def data_collator(self) -> Numbered:
        return self._numbered

    @data_collator.setter
    def data_collator(self, collator: Callable[[list[dict]], dict]) -> None:
        self._numbered = collator if isinstance(collator, Numbered) else Numbered(collator)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        """TRL's rows of tokens, each with its number."""
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        shown = {"desc": f"Numbering {dataset_name} dataset"} if isinstance(prepared, Dataset) else {}
        return prepared.map(lambda row, number: {NUMBER: number}, with_indices=True, **shown)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if NUMBER not in self._signature_columns:
            self._signature_columns.append(NUMBER)

    # -- draws and values ---------------------------------------------------------------------------------------------

    def _draws(self, inputs: dict, *, training: bool) -> Draws:
        """The draws of a batch's 2B responses: of the epoch in training, of a fixed seed for held-out pairs."""
        numbers = inputs[NUMBER].tolist()
        origins = [f"pair {number} (from 0)" for number in numbers] * 2
        rows = rows_of(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"], origins)
        each = [2 * number for number in numbers] + [2 * number + 1 for number in numbers]
        seed, step = (self.args.seed, self._draw_step()) if training else (EVAL_SEED, 0)
        return self.estimator.draw(self.accelerator.unwrap_model(self.model), rows, each, seed=seed, step=step)

    def _draw_step(self) -> int:
        """What the noise of a pair changes with: the epoch, or the step where epochs of a stream are not known."""
        if not isinstance(self.train_dataset, Dataset):
            return self.state.global_step
        epoch = int(self.state.epoch or 0)
        if epoch and self._precomputed_draws:
            raise UserError(
                f"{type(self).__name__}: expected one epoch beside precompute_ref_log_probs, as every epoch has draws "
                f"of its own, found another; lower max_steps, or leave precompute_ref_log_probs out."
            )
        return epoch

    def _reference_values(self, draws: Draws, *, training: bool) -> Tensor:
        """The reference's estimates, shape (B, 2, R): by its own model, or by the policy without its adapter."""
        model = self.accelerator.unwrap_model(self.model) if self.ref_model is None else self.ref_model
        adapter = nullcontext()  # without one the policy is its own reference, which TRL asks before training
        if self.ref_model is None and is_peft_model(model):
            adapter = use_adapter(model, "ref" if "ref" in model.peft_config else None)
        as_asked = evaluating_as_trained if training else evaluating
        with torch.no_grad(), self.accelerator.autocast(), as_asked(model), adapter:
            return _by_pair(draws.values(model))

    def _precompute_ref_logps(self, dataset, name: str, batch_size: int):
        """TRL's, with a cache that knows of the draws as well."""
        self._precomputes_training = dataset is self.train_dataset
        model_hash = self._precompute_model_hash
        key = (model_hash, repr(self.estimator), self.args.seed, self._precomputes_training)
        try:
            self._precompute_model_hash = Hasher.hash(key)
            return super()._precompute_ref_logps(dataset, name, batch_size)
        finally:
            self._precompute_model_hash = model_hash

    def compute_ref_log_probs(self, model, inputs) -> tuple[Tensor, Tensor]:
        """The reference's bounds of the chosen and of the rejected responses, shape (B,) each."""
        training = self._precomputes_training
        return self._reference_values(self._draws(inputs, training=training), training=training).mean(2).unbind(1)

    # -- the loss -----------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs, return_outputs=False):
        """The mean loss of a micro-batch's pairs, as its part of the step; in evaluation the mean itself."""
        training = self.model.training
        draws = self._draws(inputs, training=training)
        values = _by_pair(draws.values(model))
        policy, repeats = values, 1
        if self.precompute_ref_logps:
            reference = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]], 1)[..., None].to(values)
            policy, repeats = values.mean(2, keepdim=True), values.shape[2]
        else:
            reference = self._reference_values(draws, training=training)
        found, slopes = self.pair_loss.with_slopes(policy, reference, _by_pair(draws.tokens))
        self._log_pairs(found, policy.mean(2), inputs["attention_mask"], training)
        mean = self.sigmoid_weight * found.value.mean()
        if not training:
            return (mean, {}) if return_outputs else mean
        share = self.sigmoid_weight / (len(found.value) * self.current_gradient_accumulation_steps)
        slopes = (slopes * share / repeats).expand_as(values).transpose(0, 1).flatten(0, 1)
        last = all_but_the_last(self, model, iter(draws.parts(model, slopes)), draws.passes)
        # The value of the loss, with the gradient of the last part alone.
        loss = mean / self.current_gradient_accumulation_steps + (last - last.detach())
        return (loss, {}) if return_outputs else loss

    def _log_pairs(self, found: PairLosses, bounds: Tensor, attention_mask: Tensor, training: bool) -> None:
        """What TRL logs of pairs, under its names; ``loss_bias`` is what the noise adds to the loss on average."""
        metrics, gather = self._metrics["train" if training else "eval"], self.accelerator.gather
        if training:
            self._total_train_tokens += int(gather(attention_mask.sum()).sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        means = {
            "rewards/chosen": found.rewards[:, 0],
            "rewards/rejected": found.rewards[:, 1],
            "rewards/accuracies": (found.margin > 0).double(),
            "rewards/margins": found.margin,
            "logps/chosen": bounds[:, 0],
            "logps/rejected": bounds[:, 1],
            "loss_bias": found.bias,
        }
        for name, each in means.items():
            mean = gather(each.detach()).mean().item()
            if mean == mean:  # one replicate cannot tell the bias
                metrics[name].append(mean)


def _by_pair(of_responses: Tensor) -> Tensor:
    """Values of the chosen, then of the rejected responses, shape (2B, ...), as (B, 2, ...)."""
    return of_responses.unflatten(0, (2, -1)).transpose(0, 1)
