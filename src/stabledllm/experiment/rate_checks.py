"""Refuses a grid of learning rates that no range could be told from."""

from __future__ import annotations

from stabledllm.config.settings import ExperimentSettings
from stabledllm.data.splits import has_validation
from stabledllm.errors import UserError
from stabledllm.reports.labels import exact


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
