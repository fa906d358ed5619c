"""Densities of the mask ratio t, each with its inverse CDF, log density and importance weight."""

from stabledllm.noise.t_samplers.base import TSampler
from stabledllm.noise.t_samplers.clipped import Clipped
from stabledllm.noise.t_samplers.tabulated import Tabulated
from stabledllm.noise.t_samplers.uniform import Uniform

__all__ = ["Clipped", "TSampler", "Tabulated", "Uniform"]
