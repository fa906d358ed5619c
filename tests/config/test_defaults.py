"""One default of each value: a recipe, the library's own options and the command line give the same without a word."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from stabledllm.build import build_decoding, build_image_decoding, build_objective, loading_options
from stabledllm.config import settings as groups
from stabledllm.config.typed import Strict
from stabledllm.data.rows import EncodingOptions
from stabledllm.models.adapters import LoRAOptions
from stabledllm.models.loading import load_model
from stabledllm.noise.methods import MethodOptions
from stabledllm.policy.loss import GRPOLoss
from stabledllm.ppots.adaptive import AdaptiveOptions
from stabledllm.ppots.fit import FitOptions
from stabledllm.tasks.task import TaskOptions

WHOLE = [
    (groups.MethodSettings, MethodOptions),
    (groups.ObjectiveSettings, type(build_objective(groups.ObjectiveSettings()))),
    (groups.AdaptiveSettings, AdaptiveOptions),
    (groups.DecodingSettings, type(build_decoding(groups.DecodingSettings()))),
    (groups.ImageDecodingSettings, type(build_image_decoding(groups.ImageDecodingSettings()))),
    (groups.LoRASettings, LoRAOptions),
]
"""Groups of settings that become an options object as they are."""
PARTS = [
    (groups.PPOTSSettings, FitOptions, {"starts", "family", "uniform_share"}),
    (groups.DataSettings, TaskOptions, {"annotations", "table", "seed"}),
    # Without a word a recipe takes the task's delimiters and marks code; who encodes rows alone says what to mark.
    (groups.DataSettings, EncodingOptions, {"max_len", "over_length", "pad_response_to"}),
]
"""Groups of which some settings become fields of an options object."""


def defaults_of(kind: type) -> dict:
    """Name to default of the settings of a group or the fields of a dataclass; lists as tuples."""
    if not issubclass(kind, Strict):
        return {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: tuple(one) if isinstance(one, list) else one for name, one in kind().model_dump().items()}


def defaults_of_call(function) -> dict:
    return {name: one.default for name, one in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(("settings", "options"), WHOLE, ids=lambda kind: kind.__name__)
def test_settings_and_options_have_the_same_names_and_defaults(settings, options):
    ours = defaults_of(settings)
    if settings is groups.ObjectiveSettings:
        assert ours.pop("name") is None, "a name stands for the other keys"
        assert ours.pop("kind") == "masked", "a loss of pairs is none of masked tokens"
    assert ours == defaults_of(options)


@pytest.mark.parametrize(("settings", "options", "names"), PARTS)
def test_shared_settings_have_the_defaults_of_the_options(settings, options, names):
    ours, theirs = defaults_of(settings), defaults_of(options)
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


def test_every_group_is_compared_or_meant_for_a_command():
    compared = {settings for settings, *_ in [*WHOLE, *PARTS]}
    used_by_name = {groups.ModelSettings, groups.ImageSettings, groups.GradientSettings, groups.ShortDecodingSettings}
    used_by_name |= {groups.RouterSettings, groups.BlockScheduleSettings}
    used_by_name |= {groups.DPOSettings, groups.PairNoiseSettings, groups.SpikeSettings}
    used_by_name |= {groups.AverageSettings, groups.GRPOSettings, groups.RolloutSettings, groups.LikelihoodSettings}
    commands = {groups.TrainSettings, groups.ExperimentSettings, groups.DecomposeSettings, groups.EvalSettings}
    commands |= {groups.GenerateSettings, groups.ConvertSettings, groups.MergeSettings, groups.RescoreSettings}
    assert {getattr(groups, name) for name in groups.__all__} == compared | used_by_name | commands


def test_responses_are_drawn_as_completions_are_decoded_but_at_random():
    ours, theirs = defaults_of(groups.RolloutSettings), defaults_of(groups.DecodingSettings)
    assert ours == theirs | {"temperature": 1.0}


def test_a_loss_of_responses_has_the_defaults_of_its_settings():
    ours, theirs = defaults_of(groups.GRPOSettings), defaults_of(GRPOLoss)
    assert {name: ours[name] for name in theirs if name != "ratio"} == {n: v for n, v in theirs.items() if n != "ratio"}
    assert groups.GRPOSettings().ratio_in_force == theirs["ratio"]


def test_a_model_is_loaded_as_by_default():
    ours, theirs = loading_options(groups.ModelSettings()), defaults_of_call(load_model)
    assert ours == {name: theirs[name] for name in ours}
