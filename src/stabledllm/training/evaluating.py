"""A Trainer whose evaluation is the standard objective on the held-out rows, with fixed noise and a bar."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor

from stabledllm.errors import NotFinite, UserError
from stabledllm.evaluation.validation import mean_over_rows, row_forwards, row_nll, shares
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.noise.objective import Objective
from stabledllm.runtime.showing import bar
from stabledllm.stats.estimate import Estimate
from stabledllm.training.diverged import StepWatch
from stabledllm.training.resuming import ResumingTrainer


class EvaluatingTrainer(ResumingTrainer):
    """The evaluation of :class:`~stabledllm.training.trainer.MDMTrainer`, which sets what is named here."""

    eval_rows: Any
    """The held-out rows, encoded."""
    eval_draws: int
    """Mask ratios of each of them."""
    mask_id: int | None
    pad_id: int
    watch: StepWatch

    _evaluated: tuple[int, Tensor] | None = None
    """The step after which the rows were evaluated last, and what came out."""

    def evaluation_meter(self, objective: Objective | None = None) -> LossMeter:
        """The meter of the validation rows: of the bound on what is decoded, or of the objective that is trained."""
        return LossMeter(self._metered(), self.eval_rows, objective or Objective())

    def _metered(self) -> MeteredModel:
        return MeteredModel(self.accelerator.unwrap_model(self.model), self.mask_id, self.pad_id)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The standard objective on the validation rows with fixed noise: ``eval_loss`` and its standard error, and of
        averages of the weights ``eval_loss/NAME`` and its own.

        Every rank evaluates all rows (they are few), so that no rank waits for a gather of unequal shares.
        """
        values = self.finite_nll_of_rows()
        self._evaluated = self.state.global_step, values
        metrics = {}
        for name, each in {"": values, **self._nll_of_averages()}.items():
            estimate = mean_over_rows(each)
            metrics[f"{metric_key_prefix}_loss{name}"] = estimate.value
            metrics[f"{metric_key_prefix}_loss_stderr{name}"] = estimate.stderr
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validation(self, objective: Objective | None = None) -> Estimate:
        """The model's evaluation loss, or that under the objective that is trained.

        Raises:
            UserError: there are no validation rows. Diverged: it is not finite.
        """
        values = self.finite_nll_of_rows(objective)
        return mean_over_rows(values, share=shares(self.evaluation_meter(objective)))

    def metrics_of_weights(self) -> dict[str, Estimate]:
        """What else tells how good the weights are that the model has now, on held-out rows."""
        return {}

    def finite_nll_of_rows(self, objective: Objective | None = None) -> Tensor:
        """The evaluation loss of each held-out row, (rows,); raises as :meth:`validation` does."""
        if not len(self.eval_rows):
            raise UserError(
                "evaluation: expected validation rows (data.validation, or data.validation_share above 0), found none."
            )
        values = self.nll_of_rows(objective)
        self.watch.require(self.state.global_step, {"the evaluation loss was not finite": values is not None})
        return values

    def nll_of_rows_at_the_end(self, *, unchanged: bool) -> Tensor:
        """:meth:`finite_nll_of_rows` after training, without a second pass where the last step was evaluated.

        Args:
            unchanged: nothing but steps has changed the model, as callbacks and ``load_best_model_at_end`` may.
        """
        if unchanged and self._evaluated and self._evaluated[0] == self.state.global_step:
            return self._evaluated[1]
        return self.finite_nll_of_rows()

    def _nll_of_averages(self) -> dict[str, Tensor]:
        """What each average of the weights says of the held-out rows, (rows,), by ``/NAME``."""
        found = {}
        for name in self.averages.ready if self.averages else ():
            with self.averages.in_place(name):
                found[f"/{name}"] = self.finite_nll_of_rows()
        return found

    def nll_of_rows(self, objective: Objective | None = None) -> Tensor | None:
        """The evaluation loss of each held-out row, (rows,), with a bar; None where one is not finite."""
        meter = self.evaluation_meter(objective)
        with bar(row_forwards(meter, self.eval_draws), "validation NLL", "forward") as shown, suppress(NotFinite):
            meter.progress = shown.update
            return row_nll(meter, self.eval_draws)
        return None
