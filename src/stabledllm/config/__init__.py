"""Recipes: YAML files checked against typed settings, with ``key=value`` overrides."""

from stabledllm.config.recipe import find_recipe, load_recipe, shipped_launches, shipped_recipes
from stabledllm.config.settings import DataSettings, ExperimentSettings, PPOTSSettings, TrainSettings

__all__ = [
    "DataSettings",
    "ExperimentSettings",
    "PPOTSSettings",
    "TrainSettings",
    "find_recipe",
    "load_recipe",
    "shipped_launches",
    "shipped_recipes",
]
