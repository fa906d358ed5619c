"""What the names under ``methods`` stand for: methods and, of policy gradients, published estimators as well."""

from __future__ import annotations

from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.config.settings.policy import FORWARDS
from stabledllm.errors import UserError
from stabledllm.noise.parts import STANDARD

OF_A_METHOD = "method"
"""The value of ``grpo.estimator`` under which the run's method draws."""


def is_estimator(base: TrainSettings, name: str) -> bool:
    """Whether a name stands for a published estimator: in policy gradients ``espo`` and the like do.

    >>> is_estimator(TrainSettings(objective={"kind": "grpo"}), "espo"), is_estimator(TrainSettings(), "espo")
    (True, False)
    """
    return base.objective.kind == "grpo" and name in FORWARDS and name != OF_A_METHOD


def run_under(base: TrainSettings, name: str) -> TrainSettings:
    """The run of an experiment under one of its methods or, by its name, a published estimator.

    >>> run = run_under(TrainSettings(objective={"kind": "grpo"}), "espo")
    >>> run.method, run.grpo.estimator
    ('standard', 'espo')
    """
    if base.objective.kind != "grpo":
        return base.model_copy(update={"method": name})
    method, estimator = (STANDARD, name) if is_estimator(base, name) else (name, OF_A_METHOD)
    return base.model_copy(update={"method": method, "grpo": base.grpo.model_copy(update={"estimator": estimator})})


def name_of(run: TrainSettings) -> str:
    """The name under which a run is compared with others: its method, or its published estimator.

    >>> name_of(TrainSettings(objective={"kind": "grpo"}, grpo={"estimator": "coupled"})), name_of(TrainSettings())
    ('coupled', 'standard')
    """
    estimator = run.grpo.estimator
    return run.method if run.objective.kind != "grpo" or estimator == OF_A_METHOD else estimator


def runs_compared(settings: TrainSettings | ExperimentSettings) -> list[TrainSettings]:
    """The run of a training recipe, or one of every method of an experiment."""
    if isinstance(settings, TrainSettings):
        return [settings]
    return [run_under(settings.base, name) for name in settings.methods]


def of_responses(base: TrainSettings) -> bool:
    """Whether the objective is of whole responses, each of which has a budget of forwards under every method.

    Then the same rows and steps cost every method the same.

    >>> of_responses(TrainSettings(objective={"kind": "grpo"})), of_responses(TrainSettings())
    (True, False)
    """
    return base.objective.kind in ("dpo", "grpo")


def refuse_estimator(base: TrainSettings) -> None:
    """Refuse a published estimator for all runs of an experiment, whose methods it would replace.

    Raises:
        UserError: there is one.
    """
    if base.objective.kind == "grpo" and (name := base.grpo.estimator) != OF_A_METHOD:
        raise UserError(
            f"key 'base.grpo.estimator': expected none, since 'methods' names what is compared, found {name}; leave it "
            f"out, or write methods=[standard,{name}]."
        )
