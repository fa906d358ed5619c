"""Maskers: rules that say which tokens are masked given t, and the coefficient of each masked token's cross-entropy."""

from stabledllm.noise.counts import count_coefficients
from stabledllm.noise.maskers.base import Masker, MaskInput
from stabledllm.noise.maskers.bernoulli import Bernoulli
from stabledllm.noise.maskers.complement import Complement
from stabledllm.noise.maskers.fixed_count import FixedCount
from stabledllm.noise.maskers.isad import ISAD
from stabledllm.noise.maskers.next_token import NextToken

__all__ = ["ISAD", "Bernoulli", "Complement", "FixedCount", "MaskInput", "Masker", "NextToken", "count_coefficients"]
