"""Refuses a grid of learning rates that no range could be told from, or beside other budgets of Standard."""

from __future__ import annotations

from stabledllm.config.settings import ExperimentSettings
from stabledllm.data.splits import has_validation
from stabledllm.errors import UserError
from stabledllm.experiment.reference import check_reference
from stabledllm.reports.labels import exact


def check_varied(settings: ExperimentSettings) -> None:
    """Refuse other budgets of Standard beside a grid of learning rates, and either where it could tell nothing.

    Raises:
        UserError: names the key, and what to write.

    >>> check_varied(ExperimentSettings(standard_at=[2], learning_rates=[1e-3, 2e-3]))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'standard_at': expected one of standard_at and learning_rates, ...
    """
    varied = "learning_rates" if settings.learning_rates else "max_grad_norms" if settings.max_grad_norms else None
    if settings.standard_at and varied:
        raise UserError(
            f"key 'standard_at': expected one of standard_at and {varied}, since budgets are read off at one learning "
            f"rate, found both; leave one out, and make another experiment for it."
        )
    check_reference(settings)
    check_rates(settings)


def check_rates(settings: ExperimentSettings) -> None:
    """Refuse clipping norms without learning rates, and learning rates where no final loss compares them.

    Raises:
        UserError: names the key, and what to write.
    """
    base = settings.base
    if settings.max_grad_norms and not settings.learning_rates:
        rate = exact(base.trainer.get("learning_rate", 2e-3))
        raise UserError(
            f"key 'max_grad_norms': expected learning_rates beside it, found none; write learning_rates=[{rate}], or "
            f"base.trainer.max_grad_norm=NORM for one norm."
        )
    if not settings.learning_rates:
        return
    if base.objective.kind == "grpo":
        raise UserError(
            "key 'learning_rates': expected an objective whose final loss compares them, found objective.kind=grpo, "
            "whose rewards have no range within 2 % of a best; write base.trainer.learning_rate, one experiment each."
        )
    if not has_validation(base.data):
        raise UserError(
            "key 'learning_rates': expected validation rows, whose final NLL compares them, found none, since "
            "data.validation_share=0 trains on every row; give base.data.validation, or a share."
        )
