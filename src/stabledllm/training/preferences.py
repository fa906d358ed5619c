"""Training on preferences: a Trainer whose rows are pairs, with everything else of :class:`MDMTrainer`.

Legend: B pairs of a micro-batch, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stabledllm.data.rows import TokenRow, collate
from stabledllm.evaluation.validation import mean_over_rows
from stabledllm.models.evaluating import evaluating
from stabledllm.noise.densities import TSampler
from stabledllm.preference.density import slopes_of
from stabledllm.preference.draws import BoundEstimator, Pair, SharedDraws
from stabledllm.preference.loss import DPOLoss, PairLosses
from stabledllm.preference.reference import Reference
from stabledllm.stats.estimate import Estimate
from stabledllm.training.blocks import InBlocks
from stabledllm.training.equal_passes import equal_passes
from stabledllm.training.history import PAIRS
from stabledllm.training.responses import ResponseTrainer
from stabledllm.training.statistics import Gather, StepStatistics

EVAL_SEED = 20_251_118
"""Of the noise of held-out pairs: the same for every run and step, so that differences are paired."""


def pairs_of(chosen: Sequence[TokenRow], rejected: Sequence[TokenRow]) -> list[Pair]:
    """The pairs of rows that stand in the same order."""
    return [Pair(*both) for both in zip(chosen, rejected, strict=True)]


class PairDataset(Dataset):
    """Pairs, indexed by ``(row, place)``; what stands for a pair in lengths and row weights is its chosen response."""

    def __init__(self, pairs: Sequence[Pair]):
        self.pairs = pairs
        self.rows = [pair.chosen for pair in pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, ticket: tuple[int, int]) -> tuple[Pair, int, int]:
        return self.pairs[ticket[0]], ticket[0], ticket[1]


class PairCollator:
    """Carries pairs, their numbers and places; pads the chosen rows for what counts tokens."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, items: list[tuple[Pair, int, int]]) -> dict:
        pairs, numbers, places = zip(*items, strict=True)
        batch = collate([pair.chosen for pair in pairs], self.pad_id)
        return batch | {"pairs": list(pairs), "numbers": list(numbers), "place": torch.tensor(places)}


class PairStatistics(StepStatistics):
    """Means of what pairs say, over the pairs of all ranks since the last line of the log."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.window = [0.0] * (1 + len(PAIRS))
        self._draws: list[Tensor] = []

    def add_pairs(self, position: Tensor, counted: Tensor, found: PairLosses, values: Tensor, forwards: int) -> None:
        """Add a micro-batch of this rank.

        Args:
            values: the policy's estimates, shape (B, 2, R). forwards: forward rows of policy and reference.
        """
        mean = values.mean(2)
        accuracy = (found.margin > 0).double() + 0.5 * (found.margin == 0).double()
        columns = (
            position, counted, found.rewards[:, 0], found.rewards[:, 1], accuracy, found.margin, mean[:, 0], mean[:, 1],
            found.bias, torch.full_like(found.margin, forwards / len(position)),
        )  # fmt: skip
        self._rows.append(torch.stack([c.double() for c in columns], 1))

    def add_draws(self, position: Tensor, counted: Tensor, ratios: tuple[Tensor, Tensor], added: Tensor) -> None:
        """Add what the draws of a micro-batch of this rank say of the density of t.

        Args:
            ratios: mask ratio and importance weight of each draw. added: to the loss of its pair, all (B, 2, D).
        """
        t, weight, added = (values.flatten(1).double() for values in (*ratios, added))
        draw = torch.arange(t.shape[1], device=t.device).expand_as(t)
        of_pair = torch.stack((position, counted), 1).double().repeat_interleave(t.shape[1], 0)
        self._draws.append(torch.cat((of_pair, torch.stack((draw, t, weight, added), 2).flatten(0, 1)), 1))

    def finish_step(self, gather: Gather, sampler: TSampler) -> TSampler:
        self._finish_pairs(gather)
        if not self._draws:
            return sampler
        table = gather(torch.cat(self._draws)).cpu()
        self._draws = []
        table = table[table[:, 1] > 0]
        in_order = table[:, 0] * (table[:, 2].max() + 1) + table[:, 2]
        t, weight, added = table[in_order.argsort()][:, 3:].unbind(1)
        return self.adaptive.sampler() if self.adaptive.update(t, weight, added) else sampler

    def _finish_pairs(self, gather: Gather) -> None:
        table = gather(torch.cat(self._rows)).cpu()
        self._rows = []
        self.forward_passes += round(float(table[:, -1].sum()))
        table = table[table[:, 1] > 0]
        table = table[table[:, 0].argsort()]
        sums = [float(len(table)), *table[:, 2:-1].sum(0).tolist()]
        self.window = [w + x for w, x in zip(self.window, sums, strict=True)]

    def flush(self) -> dict[str, float]:
        n, *sums = self.window
        if not n:
            return {}
        self.window = [0.0] * len(self.window)
        means = {name: total / n for name, total in zip(PAIRS, sums, strict=True)}
        known = {name: mean for name, mean in means.items() if name != "loss_bias" or not math.isnan(mean)}
        return known | {"forward_passes": self.forward_passes}


class DPOTrainer(ResponseTrainer):
    """Trains a policy to prefer chosen to rejected responses, on variance-reduced ELBOs of both.

    Policy and reference see the same draws, functions of the seed, the epoch and the pair's number in the data: any
    split over ranks and accumulation gives the same step, and a resumed run continues with the same bits. (With
    ``adaptive`` they are also functions of the density, which follows what the draws of earlier steps added to the
    loss; held-out pairs keep the density that the run started from.) Each forward
    of the policy has a backward of its own, so that one forward's activations are held; the gradient is the joint one.
    Evaluation is the bound of the chosen responses, as for other training, and the loss of the held-out pairs.

    Args:
        train_rows, eval_rows: the chosen responses. rejected, eval_rejected: the other ones, in the same order.
        loss: of pairs. estimator: of the bounds. reference: makes the policy's reference once the policy is on its
            device; called with the Trainer. The other arguments are those of :class:`MDMTrainer`.

    Raises:
        UserError: a correction that the estimator's replicates do not allow.
    """

    kind = "dpo"

    def __init__(
        self,
        *,
        train_rows: Sequence[TokenRow],
        eval_rows: Sequence[TokenRow],
        rejected: Sequence[TokenRow],
        eval_rejected: Sequence[TokenRow],
        loss: DPOLoss,
        estimator: BoundEstimator,
        reference: Callable[[DPOTrainer], Reference],
        **kwargs,
    ):
        self.pair_loss, self.estimator = loss, estimator
        self.eval_pairs = pairs_of(eval_rows, eval_rejected)
        super().__init__(train_rows=train_rows, eval_rows=eval_rows, reference=reference, **kwargs)
        self.train_dataset = PairDataset(pairs_of(train_rows, rejected))
        self.data_collator = PairCollator(self.pad_id)

    @property
    def epoch(self) -> int:
        """The number of whole passes over the pairs before the current step."""
        return self.state.global_step // math.ceil(len(self.train_dataset) / self.full_step)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's mean loss; all its backward passes but the last are made here."""
        bare = self.accelerator.unwrap_model(model)
        pairs, numbers = inputs["pairs"], inputs["numbers"]
        own = self._estimator().draw(bare, pairs, numbers, seed=self.noise_seed, step=self.epoch)
        draws = equal_passes(self, own)
        if self.adaptive:
            values, reference = self._values_of_draws(model, own, inputs)
        else:
            values, reference = draws.values(model), self.of_reference(model, draws, numbers, self.epoch)
        found, slopes = self.pair_loss.with_slopes(values, reference, draws.tokens)
        counted = inputs["counted"].to(found.value.device)
        # Data-parallel wrappers average gradients over ranks; parts of one mean must be summed.
        share = counted.to(found.value) / inputs["step_rows"] * self.args.world_size
        last = self.back_through(model, draws, slopes * share[:, None, None])
        self.watch.loss(found.value, last)
        passes = 2 + self.reference.passes  # the policy's values, then the same with a graph
        forwards = passes * 2 * self.estimator.budget * len(pairs)
        self.statistics.add_pairs(inputs["position"], counted, found, values, forwards)
        # The value of the loss, with the gradient of the last part alone.
        loss = (found.value * share).sum() + (last - last.detach())
        return (loss, {}) if return_outputs else loss

    def _estimator(self) -> BoundEstimator:
        """The estimator of this step: with ``adaptive`` its draws come from the density as it is now."""
        return replace(self.estimator, density=self.sampler) if self.adaptive else self.estimator

    def _values_of_draws(self, model, draws: SharedDraws, inputs: dict) -> tuple[Tensor, Tensor]:
        """The estimates of policy and reference, (B, 2, R); what each draw adds to the loss goes to ``adaptive``."""
        each = equal_passes(self, draws.each())
        both = each.values(model), self.of_reference(model, each, inputs["numbers"], self.epoch)
        values, reference = (by_draw.unflatten(2, (draws.replicates, -1)).mean(3) for by_draw in both)
        slopes = slopes_of(self.pair_loss, values, reference, draws.tokens)
        added = (slopes[..., None] * torch.stack(both, 2)).sum(2)
        self.statistics.add_draws(inputs["position"], inputs["counted"].to(added.device), draws.ratios(), added)
        return values, reference

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The bound of the held-out chosen responses, and what the held-out pairs say, with fixed noise."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        of_pairs = {f"{metric_key_prefix}_{name}": each.value for name, each in self.pair_metrics().items()}
        self.log(of_pairs)
        return metrics | of_pairs

    def pair_metrics(self) -> dict[str, Estimate]:
        """Loss, accuracy and margin of the held-out pairs, with errors over pairs, under noise that all runs share."""
        bare, estimator, found = self.accelerator.unwrap_model(self.model), self.estimator, []
        with evaluating(bare):
            for start in range(0, len(self.eval_pairs), self.args.train_batch_size):
                pairs = self.eval_pairs[start : start + self.args.train_batch_size]
                numbers = range(start, start + len(pairs))
                draws = estimator.draw(bare, pairs, numbers, seed=EVAL_SEED)
                reference = self.of_reference(bare, draws, numbers, None)
                with self.accelerator.autocast():
                    values = draws.values(bare)
                found.append(DPOLoss(self.pair_loss.beta)(values, reference, draws.tokens))
        loss, margin = (torch.cat([getattr(each, name) for each in found]).double() for name in ("value", "margin"))
        right = (margin > 0).double() + 0.5 * (margin == 0)
        named = {
            "preference_loss": (loss, "nats"),
            "preference_accuracy": (right, ""),
            "preference_margin": (margin, ""),
        }
        return {name: mean_over_rows(each, unit) for name, (each, unit) in named.items()}

    def further_metrics(self) -> dict[str, Estimate]:
        return self.metrics_of_weights()

    def metrics_of_weights(self) -> dict[str, Estimate]:
        return self.pair_metrics() if self.eval_pairs else {}


class BlockDPOTrainer(InBlocks, DPOTrainer):
    """The same for a model in blocks, whose bounds are those of decoding block by block."""
