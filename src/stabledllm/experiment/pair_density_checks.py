"""The checks of a density of t for preferences, of one to train with and of one to fit; none loads torch."""

from __future__ import annotations

from functools import partial

from stabledllm.config.settings import TrainSettings
from stabledllm.config.settings.preference import OF_THE_POLICY
from stabledllm.experiment.check_list import WEIGHED, Checks
from stabledllm.experiment.run_checks import in_known_blocks, is_known
from stabledllm.models.names import check_model_name
from stabledllm.noise.of_parts import OfParts
from stabledllm.preference_checks import check_fit_to_pairs, check_pair_density, check_preferences


def of_density(run: TrainSettings, name: str) -> Checks:
    """The check that training can have the density that a method draws t from."""
    if is_known(name):
        yield (
            "method methods p_of_t objective dpo model block_size",
            partial(check_pair_density, in_known_blocks(run), OfParts(name)),
        )


def of_fit_to_pairs(run: TrainSettings) -> Checks:
    """The checks of a fit of p(t) to preferences."""
    yield f"{WEIGHED} dpo data.format", partial(check_preferences, run)
    if run.objective.kind == "dpo" and run.dpo.reference not in OF_THE_POLICY:
        yield "dpo.reference", partial(check_model_name, run.dpo.reference)
    if is_known(run.method):
        yield (
            "dpo objective model block_size method",
            partial(check_fit_to_pairs, in_known_blocks(run), OfParts(run.method)),
        )
