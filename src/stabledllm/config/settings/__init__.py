"""Every setting of a recipe, with its default and its meaning; :mod:`stabledllm.build` makes objects of them."""

from stabledllm.config.settings.average import AverageSettings
from stabledllm.config.settings.blocks import BlockScheduleSettings
from stabledllm.config.settings.commands import ConvertSettings, GenerateSettings, MergeSettings, RescoreSettings
from stabledllm.config.settings.data import DataSettings, ImageSettings
from stabledllm.config.settings.decompose import DecomposeSettings, GradientSettings
from stabledllm.config.settings.evaluation import (
    DecodingSettings,
    EvalSettings,
    ImageDecodingSettings,
    ShortDecodingSettings,
)
from stabledllm.config.settings.likelihood import LikelihoodSettings
from stabledllm.config.settings.method import AdaptiveSettings, MethodSettings, ObjectiveSettings, PPOTSSettings
from stabledllm.config.settings.model import LoRASettings, ModelSettings, RouterSettings
from stabledllm.config.settings.policy import GRPOSettings, RolloutSettings
from stabledllm.config.settings.preference import DPOSettings, PairNoiseSettings
from stabledllm.config.settings.training import ExperimentSettings, SpikeSettings, TrainSettings

__all__ = [
    "AdaptiveSettings",
    "AverageSettings",
    "BlockScheduleSettings",
    "ConvertSettings",
    "DPOSettings",
    "DataSettings",
    "DecodingSettings",
    "DecomposeSettings",
    "EvalSettings",
    "ExperimentSettings",
    "GRPOSettings",
    "GenerateSettings",
    "GradientSettings",
    "ImageDecodingSettings",
    "ImageSettings",
    "LikelihoodSettings",
    "LoRASettings",
    "MergeSettings",
    "MethodSettings",
    "ModelSettings",
    "ObjectiveSettings",
    "PPOTSSettings",
    "PairNoiseSettings",
    "RescoreSettings",
    "RolloutSettings",
    "RouterSettings",
    "ShortDecodingSettings",
    "SpikeSettings",
    "TrainSettings",
]
