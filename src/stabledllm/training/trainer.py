"""MDMTrainer: transformers' Trainer with this library's noise, objective and evaluation loss.

No formula stands here: t, masks and coefficients come from ``noise``, the mean from ``objective``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from stabledllm.data.rows import TokenRow
from stabledllm.estimate import Estimate
from stabledllm.evaluation.validation import mean_over_rows, row_nll
from stabledllm.measure import LossMeter
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key
from stabledllm.noise.t_samplers import TSampler
from stabledllm.objective import Objective, nll_weights, reduce_loss, row_losses
from stabledllm.ppots.adaptive import AdaptiveDensity
from stabledllm.training.checkpoints import stamp
from stabledllm.training.ordering import EpochOrder, RowCollator, RowDataset
from stabledllm.training.positions import step_rows
from stabledllm.training.statistics import StepStatistics


class _StepEnd(TrainerCallback):
    """Merges the statistics of a step when it ends and stamps checkpoints when they are saved."""

    def __init__(self, trainer: MDMTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_):
        # By now a resumed Trainer has the checkpoint's statistics.
        trainer = self.trainer
        if trainer.adaptive:
            trainer.sampler = trainer.statistics.follow(trainer.adaptive)

    def on_step_end(self, args, state, control, **_):
        trainer = self.trainer
        trainer.sampler = trainer.statistics.finish_step(trainer.accelerator.gather, trainer.sampler)

    def on_save(self, args, state, control, **_):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            stamp(folder, self.trainer.identity, self.trainer.density_file)


class MDMTrainer(Trainer):
    """Trains a masked diffusion model with any :class:`Method`.

    The same rows per optimizer step give the same t and masks bit for bit however they are split
    over ranks and accumulation, and a resumed run continues bit-identically. The loss is a mean over
    the rows of the whole step. Evaluation is always the standard objective with fixed noise.

    Args:
        method: what is drawn. sampler: its density of t. objective: what is minimised.
        train_rows, eval_rows: encoded rows. mask_id, pad_id: token ids.
        noise_seed: of the noise. order_seed: of the order of the rows; without it ``noise_seed``.
        density_file: the saved p(t), copied into every checkpoint.
        adaptive: the density of a method with ``adaptive``; its state is in every checkpoint.
        identity: what a resumed run must have in common with this one.
    """

    def __init__(
        self,
        *,
        method: Method,
        sampler: TSampler,
        objective: Objective,
        train_rows: list[TokenRow],
        eval_rows: list[TokenRow],
        mask_id: int,
        pad_id: int,
        noise_seed: int,
        order_seed: int | None = None,
        statistics: StepStatistics,
        eval_draws: int = 4,
        density_file: Path | None = None,
        adaptive: AdaptiveDensity | None = None,
        identity: dict | None = None,
        **kwargs,
    ):
        self.method, self.sampler, self.objective = method, sampler, objective
        self.mask_id, self.pad_id, self.noise_seed = mask_id, pad_id, noise_seed
        self.order_seed = noise_seed if order_seed is None else order_seed
        self.eval_rows, self.eval_draws = eval_rows, eval_draws
        self.density_file, self.adaptive, self.identity = density_file, adaptive, identity or {}
        kwargs["args"].remove_unused_columns = False
        super().__init__(
            train_dataset=RowDataset(train_rows),
            eval_dataset=RowDataset(eval_rows),
            data_collator=RowCollator(pad_id, syrm=method.syrm),
            **kwargs,
        )
        # Our loss is already a part of the mean over the whole step: the Trainer must not scale it again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.add_callback(statistics)
        self.add_callback(_StepEnd(self))

    @property
    def statistics(self) -> StepStatistics:
        """The collector; looked up, since a resumed Trainer replaces it by the checkpoint's."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, StepStatistics))

    @property
    def full_step(self) -> int:
        """Rows in a full optimizer step, over all ranks and accumulation."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _get_train_sampler(self, train_dataset=None) -> EpochOrder:
        rows = len(train_dataset if train_dataset is not None else self.train_dataset)
        return EpochOrder(rows, self.full_step, self.order_seed, lambda: self.state.global_step)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetch a step's micro-batches and fix their rows' positions over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._fix_positions(batches, device)
        return batches, len(batches) or None

    def _fix_positions(self, batches: list[dict], device: torch.device) -> None:
        place = torch.cat([b["place"] for b in batches]).to(device)
        weight = torch.cat([self.objective.row_weight(b["maskable"]) for b in batches]).to(device)
        ranks = self.args.world_size
        step = step_rows(
            self.accelerator.gather(place).view(ranks, -1),
            self.accelerator.gather(weight).view(ranks, -1),
            self.args.process_index,
            self.full_step,
        )
        weight = weight * step.counted
        start = 0
        for batch in batches:
            own = slice(start, start + len(batch["place"]))
            start = own.stop
            batch |= {"position": step.position[own], "counted": step.counted[own], "row_weight": weight[own]}
            batch |= {"step_rows": step.step_rows, "step_weight": step.step_weight}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's mean loss."""
        ids, maskable = inputs["input_ids"], inputs["maskable"]
        rows = Rows(
            position=inputs["position"],
            step_rows=inputs["step_rows"],
            maskable=maskable,
            token_index=torch.arange(ids.shape[1], device=ids.device),
            delimiter=inputs["delimiter"],
        )
        draw = self.method.draw(Key(self.noise_seed, self.state.global_step), rows, self.sampler, self.objective)
        noisy, mask, source = draw.noisy(ids, self.mask_id)
        weights = nll_weights(draw.mask, draw.coefficient, draw.active, inputs["row_weight"])
        out = model(
            noisy,
            attention_mask=inputs["attention_mask"][source],
            selected=mask,
            targets=ids[source],
            nll_weights=weights,
        )
        losses = row_losses(out.nll, draw.mask, draw.coefficient, draw.active)
        self.statistics.add(draw, rows, inputs["counted"], losses, len(noisy))
        loss = reduce_loss(losses, inputs["row_weight"], inputs["step_weight"])
        # Data-parallel wrappers average gradients over ranks; parts of one mean must be summed.
        loss = loss * self.args.world_size
        return (loss, out) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.statistics.flush()
        super().log(logs, start_time)

    def evaluation_meter(self) -> LossMeter:
        """Measures this rank's share of the validation rows."""
        return LossMeter(
            self.accelerator.unwrap_model(self.model),
            self.eval_rows,
            Objective(),
            mask_id=self.mask_id,
            pad_id=self.pad_id,
        )

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The standard objective on the validation rows with fixed noise: ``eval_loss`` and its standard error.

        Every rank evaluates all rows (they are few), so that no rank waits for a gather of unequal shares.
        """
        estimate = self.validation()
        metrics = {f"{metric_key_prefix}_loss": estimate.value, f"{metric_key_prefix}_loss_stderr": estimate.stderr}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validation(self) -> Estimate:
        """The evaluation loss of the model as it is."""
        return mean_over_rows(self._row_values())

    def _row_values(self) -> Tensor:
        return row_nll(self.evaluation_meter(), self.eval_draws)
