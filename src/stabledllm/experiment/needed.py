"""What a recipe must say before it can be run: which rows it trains on, and enough of them for a step."""

from __future__ import annotations

from stabledllm.config.recipe import shipped_recipes
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.splits import has_test, has_validation, refuse_few_rows
from stabledllm.errors import UserError
from stabledllm.experiment.compared import of_responses
from stabledllm.noise.of_parts import OfParts

_PARTS = "parts/"
NOTHING_TO_COMPARE = (
    "expected rows to compare methods on, found none: data.validation_share=0 holds none out; give it a share, or "
    "data.validation, or data.test with answers to score."
)


def check_needed(name: str, run: TrainSettings) -> None:
    """Refuse a recipe that names no training rows, or fewer than a step takes.

    Raises:
        UserError: says what to write.
    """
    if "train" not in run.data.model_fields_set:
        part = next((one for one in (name, _PARTS + name) if one.startswith(_PARTS) and one in shipped_recipes()), None)
        if part:
            raise UserError(
                f"recipe '{name}': expected a recipe with data.train, found a part of others; write "
                f"RECIPE+{part.removeprefix(_PARTS)}."
            )
        raise UserError(
            f"recipe '{name}': expected data.train, the rows to train on, found none; write data.train=PATH (your own "
            f"file), or data.train=synthetic for the synthetic task."
        )
    if run.data.train_rows is not None:
        refuse_few_rows(run.batch, run.data.train_rows)


def check_evaluated(run: TrainSettings) -> None:
    """Refuse keys that need validation rows where there are none.

    Raises:
        UserError: names the key.
    """
    if has_validation(run.data):
        return
    if run.trainer.get("lr_scheduler_type") == "reduce_lr_on_plateau":
        raise UserError(
            "key 'trainer.lr_scheduler_type': expected validation rows for 'reduce_lr_on_plateau', found none, since "
            "data.validation_share=0 trains on every row; write another schedule, or give data.validation."
        )
    for name in ("eval_on_start", "eval_delay"):
        if run.trainer.get(name):
            raise UserError(
                f"key 'trainer.{name}': expected validation rows, found none, since data.validation_share=0 trains on "
                f"every row; leave it out, or give data.validation."
            )


def refuse_views(method: str, views: int, batch: int) -> None:
    """Refuse a batch of forward passes that a method's views do not divide, where every row takes all of them.

    Raises:
        UserError: names the batch, and one that works.
    """
    if rest := batch % views:
        fits = [one for one in (batch - rest, batch - rest + views) if one]
        raise UserError(
            f"key 'base.batch': expected a multiple of the {views} views of '{method}', found {batch}; write "
            f"base.batch={' or base.batch='.join(map(str, fits))}."
        )


def check_views(experiment: ExperimentSettings, method: OfParts) -> None:
    """The same as :func:`refuse_views`, as far as the names of the method's parts tell how many views a row takes.

    Raises:
        UserError: as there.
    """
    named = next((named for named in method.parts if named.views > 1), None)
    some_rows_take_fewer = method.has("complement") or experiment.base.method_options.mirror_below < 1
    asks = experiment.base.objective.tokens in ("lift", "gift")  # so that a row's cost is no whole number of views
    divided = experiment.equal == "compute" and not of_responses(experiment.base)
    if named and divided and not some_rows_take_fewer and not asks:
        refuse_views(method.name, named.views, experiment.base.batch)


def check_comparable(experiment: ExperimentSettings) -> None:
    """Refuse an experiment without any rows that its methods could be compared on.

    Raises:
        UserError: says what would give some.
    """
    data = experiment.base.data
    if experiment.base.objective.kind == "grpo":  # whose rewards are compared
        return
    if not has_validation(data) and not has_test(data):
        raise UserError(f"key 'base.data.validation_share': {NOTHING_TO_COMPARE}")
