"""What is drawn at random: where u comes from, which density t has, which tokens are masked.

Torch only (a real power of the objective takes scipy as well). Every draw is a pure function of
(seed, optimizer step, row's position in the step's global batch, token index in the unpadded row,
stream).
"""

from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS, p_mask

__all__ = ["EPS", "Method", "p_mask"]
