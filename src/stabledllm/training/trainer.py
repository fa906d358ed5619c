"""MDMTrainer: transformers' Trainer with this library's noise, objective and evaluation loss.

No formula stands here: t, masks and coefficients come from ``noise``, the mean from ``loss``.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback

from stabledllm.data.rows import TokenRow
from stabledllm.data.token_rows import lengths_of, refuse_masked_rows
from stabledllm.errors import UserError
from stabledllm.forward.chosen import chosen
from stabledllm.forward.nll import forward_nll, only, view_groups
from stabledllm.loss import nll_weights, reduce_loss, token_losses
from stabledllm.models.output import MDMOutput
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Draw, Method, Rows
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.adaptive import AdaptiveDensity
from stabledllm.stats.estimate import Estimate
from stabledllm.training.annealing import annealing_of
from stabledllm.training.devices import refuse_unrunnable
from stabledllm.training.diverged import StepWatch
from stabledllm.training.evaluating import EvaluatingTrainer
from stabledllm.training.expert_load import ExpertLoad
from stabledllm.training.ordering import EpochOrder, RowCollator, RowDataset
from stabledllm.training.positions import StepRows, step_rows
from stabledllm.training.statistics import StepStatistics
from stabledllm.training.streaming import StreamedRows, StreamOrder, check_rows


class _StepEnd(TrainerCallback):
    """Checks a step for finite numbers, and merges its statistics over the ranks when it ends."""

    def __init__(self, trainer: MDMTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_):
        # Only now does a resumed Trainer have the checkpoint's statistics.
        trainer = self.trainer
        if trainer.adaptive:
            trainer.sampler = trainer.statistics.follow(trainer.adaptive)

    def on_pre_optimizer_step(self, args, state, control, **_):
        self.trainer.watch.before_step()

    def on_step_end(self, args, state, control, **_):
        trainer = self.trainer
        trainer.watch.after_step()
        trainer.sampler = trainer.statistics.finish_step(trainer.gather_rows, trainer.sampler)
        if load := trainer.expert_load:
            load.finish_step(trainer.model, trainer.accelerator.reduce)


class MDMTrainer(EvaluatingTrainer):
    """Trains a masked diffusion model with any :class:`Method`.

    The same rows per optimizer step give the same t and masks bit for bit however they are split over ranks and
    accumulation, and a resumed run continues bit-identically. The loss is a mean over the rows of the whole step; one
    that is not finite ends the run (``Diverged``). Evaluation is always the standard objective with fixed noise.

    Args:
        method: draws the noise, under the objective that is minimised. sampler: its density of t.
        train_rows, eval_rows: encoded rows; those to train on may be streamed. mask_id, pad_id: token ids.
        noise_seed: seed of the noise. order_seed: seed of the order of the rows; without it ``noise_seed``.
        density_file: the saved p(t), copied into every checkpoint.
        adaptive: the density of a method with ``adaptive``; its state is in every checkpoint.
        identity: the run's identity, which a resumed run must share.
        packing: rows of a micro-batch go through the model end to end, without padding. group_by_length: the rows of
            each optimizer step are dealt to its micro-batches by length. Neither changes which rows a step has, nor
            any t or mask.
        views_per_forward: views of a row in one forward and backward; without it all. Less memory, the same result.
        caption_dropout: for rows of images, the probability that a step sees a row without its caption.
        expert_load: for a model with experts, what counts and balances their load.
    """

    form_names: tuple[str, ...] = ()
    """Tensors of a micro-batch that the model takes by name, besides the tokens and their attention mask."""

    def __init__(
        self,
        *,
        method: Method,
        sampler: TSampler,
        train_rows: list[TokenRow] | StreamedRows,
        eval_rows: list[TokenRow],
        mask_id: int | None,
        pad_id: int,
        noise_seed: int,
        order_seed: int | None = None,
        statistics: StepStatistics,
        eval_draws: int = 4,
        density_file: Path | None = None,
        adaptive: AdaptiveDensity | None = None,
        identity: dict | None = None,
        packing: bool = False,
        group_by_length: bool = False,
        views_per_forward: int | None = None,
        caption_dropout: float = 0.0,
        expert_load: ExpertLoad | None = None,
        **kwargs,
    ):
        for rows in (train_rows, eval_rows):
            check_rows(rows, partial(refuse_masked_rows, mask_id=mask_id))
        self.packing, self.group_by_length, self.views_per_forward = packing, group_by_length, views_per_forward
        self.caption_dropout, self._tokens = caption_dropout, torch.zeros((), dtype=torch.long)
        self.method, self.sampler, self.objective = method, sampler, method.objective
        self.mask_id, self.pad_id, self.noise_seed = mask_id, pad_id, noise_seed
        self.order_seed = noise_seed if order_seed is None else order_seed
        self.eval_rows, self.eval_draws = eval_rows, eval_draws
        self.density_file, self.adaptive, self.identity = density_file, adaptive, identity or {}
        kwargs["args"].remove_unused_columns = False
        with refuse_unrunnable("key 'trainer'"):
            super().__init__(
                train_dataset=RowDataset(train_rows),
                eval_dataset=RowDataset(eval_rows),
                data_collator=RowCollator(pad_id, syrm=method.syrm, captions=caption_dropout > 0),
                **kwargs,
            )
        if views_per_forward and self.is_deepspeed_enabled:
            raise UserError("key 'views_per_forward': expected none under DeepSpeed, which counts every backward.")
        # Our loss is already a part of the mean over the whole step: the Trainer must not scale it again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.watch = StepWatch(self)
        self.batches: list[dict] = []
        """The micro-batches of the current step."""
        self.add_callback(statistics)
        if expert_load:
            self.add_callback(expert_load)
        self.add_callback(_StepEnd(self))
        if annealing := annealing_of(kwargs["model"], noise_seed):
            self.add_callback(annealing)

    @property
    def statistics(self) -> StepStatistics:
        """The collector of statistics; looked up each time, since a resumed Trainer replaces it by the checkpoint's."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, StepStatistics))

    @property
    def expert_load(self) -> ExpertLoad | None:
        """The collector of the experts' load; None for a dense model."""
        return next((c for c in self.callback_handler.callbacks if isinstance(c, ExpertLoad)), None)

    @property
    def full_step(self) -> int:
        """Rows in a full optimizer step, over all ranks and accumulation."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _get_train_sampler(self, train_dataset=None) -> EpochOrder | StreamOrder:
        if self.streamed:
            return StreamOrder(len(self.streamed))
        rows = len(train_dataset if train_dataset is not None else self.train_dataset)
        lengths = lengths_of(self.train_dataset.rows) if self.group_by_length else None
        return EpochOrder(rows, self.full_step, self.order_seed, lambda: self.state.global_step, lengths)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetch a step's micro-batches and fix their rows' positions over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.batches = batches
        if batches:
            self._fix_positions(batches, device)
        return batches, len(batches) or None

    def _fix_positions(self, batches: list[dict], device: torch.device) -> StepRows:
        places = self._of_all_ranks([b["place"] for b in batches], device)
        weights = self._of_all_ranks([self.objective.row_weight(b["maskable"]) for b in batches], device)
        step = step_rows(places, weights, self.full_step)
        lengths = self._of_all_ranks([b["attention_mask"].sum(1) for b in batches], device)
        self._tokens = self._tokens + (lengths * step.counted).sum()  # still on the device, so that no step waits
        columns = {"position": step.position, "counted": step.counted, "row_weight": weights * step.counted}
        self._deal(batches, columns)
        for batch in batches:
            batch |= {"step_rows": step.step_rows, "step_weight": step.step_weight}
        return step

    def _of_all_ranks(self, parts: list[Tensor], device: torch.device) -> Tensor:
        """Values of this rank's rows, by micro-batch, gathered with those of every rank; shape (ranks, n)."""
        return self.accelerator.gather(torch.cat(parts).to(device)).view(self.args.world_size, -1)

    def _deal(self, batches: list[dict], columns: dict[str, Tensor]) -> None:
        """Put this rank's part of values of all ranks' rows, shape (ranks, n), into its micro-batches."""
        sizes = [len(batch["place"]) for batch in batches]
        for name, values in columns.items():
            for batch, part in zip(batches, values[self.args.process_index].split(sizes), strict=True):
                batch[name] = part

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's mean loss."""
        inputs, rows, draw = self.drawn(Key(self.noise_seed, self.state.global_step), inputs)
        losses, loss, out, forwards = [], 0.0, None, draw.forwards
        groups = view_groups(draw.active.shape[1], self.views_per_forward)
        for views in groups:
            last = views is groups[-1]
            # Each part but the last runs its backward pass at once, so that only one part's activations are held; ranks
            # exchange gradients only in the last.
            with nullcontext() if last else self.accelerator.no_sync(model):
                part, beside, out, n_forwards = self._part(model, inputs, draw, views)
                mean = reduce_loss(part.sum(dim=(1, 2)) + beside, inputs["row_weight"], inputs["step_weight"])
                # Data-parallel wrappers average gradients over ranks; parts of one mean must be summed.
                mean = mean * self.args.world_size
                if not last:
                    self.accelerator.backward(mean)
                    mean = mean.detach()
            losses.append(part.detach())
            loss, forwards = loss + mean, forwards + n_forwards
        tokens = sum(losses)
        self.watch.loss(tokens, loss)
        self._count(draw, rows, inputs, tokens, forwards)
        return (loss, out) if return_outputs else loss

    def drawn(self, key: Key, inputs: dict) -> tuple[dict, Rows, Draw]:
        """A micro-batch as the model sees it, its rows as the noise depends on them, and their noise."""
        inputs = self._shown(key, inputs)
        ids = inputs["input_ids"]
        rows = Rows(
            position=inputs["position"],
            step_rows=inputs["step_rows"],
            maskable=inputs["maskable"],
            token_index=torch.arange(ids.shape[1], device=ids.device),
            delimiter=inputs["delimiter"],
        )
        return inputs, rows, self._draw(key, rows, inputs)

    def _draw(self, key: Key, rows: Rows, inputs: dict) -> Draw:
        """The noise of a micro-batch."""
        draw = self.method.draw(key, rows, self.sampler)
        return chosen(draw, self.method, key, rows, inputs, self.model, self.mask_id, packing=self.packing)

    def _count(self, draw: Draw, rows: Rows, inputs: dict, tokens: Tensor, forwards: int) -> None:
        """Hand a micro-batch's draw and its tokens' loss contributions, (B, K, L), to the statistics."""
        losses = tokens.sum(dim=(1, 2))
        self.statistics.add(draw, rows, inputs["counted"], losses, forwards, inputs["row_weight"])

    def _shown(self, key: Key, inputs: dict) -> dict:
        """The micro-batch as the model sees it: rows lose their caption with probability ``caption_dropout``, drawn by
        position."""
        if not self.caption_dropout:
            return inputs
        bare = key.row_uniforms(Stream.CAPTION, inputs["position"]) < self.caption_dropout
        names = ("input_ids", "attention_mask")
        return inputs | {name: torch.where(bare[:, None], inputs[f"bare_{name}"], inputs[name]) for name in names}

    def _part(self, model, inputs: dict, draw: Draw, views: range) -> tuple[Tensor, Tensor | float, MDMOutput, int]:
        """Loss contributions of the tokens of some views (B, K, L), what is added to each row's loss beside them (B,),
        the model's output, and the number of forwards."""
        active = only(draw.active, views)
        weights = nll_weights(draw.mask & active[..., None], draw.coefficient, draw.active, inputs["row_weight"])
        load = self.expert_load
        with load.watching(self.model) if load else nullcontext():
            nll, n = forward_nll(
                model,
                inputs,
                replace(draw, active=active),
                self.mask_id,
                weights=weights,
                form={name: inputs[name] for name in self.form_names},
                packing=self.packing,
            )
        beside = load.take(inputs, draw, active, self.packing) if load else 0.0
        losses = token_losses(nll, draw.mask & active[..., None], draw.coefficient, draw.active)
        return losses, beside, MDMOutput(nll=nll), n

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.watch.gradient(norm)
        return norm

    def further_metrics(self) -> dict[str, Estimate]:
        """What the trained model is measured by besides the bound on the NLL of held-out rows."""
        return {}

    def said_at_the_end(self) -> list[str]:
        """Sentences on what happened in training that a user should know."""
        return []

    def gather_rows(self, table: Tensor) -> Tensor:
        """The tables of all ranks' rows (units, in blocks); shorter ones get rows of zeros, which count nowhere."""
        return self.accelerator.gather(self.accelerator.pad_across_processes(table, dim=0))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the step statistics beside a training loss."""
        if "loss" in logs:
            logs |= self.statistics.flush() | (self.expert_load.flush() if self.expert_load else {})
        super().log(logs, start_time)

    def tokens_since_asked(self) -> int:
        """Tokens of all ranks' rows in the steps since the last call: prompts too, padding not, each row once."""
        tokens, self._tokens = int(self._tokens), torch.zeros((), dtype=torch.long)
        return tokens
