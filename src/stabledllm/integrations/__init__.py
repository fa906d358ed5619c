"""This library's noise in another training loop; ``docs/use_in_your_loop.md`` shows the lines to change.

``Noise`` is for a loop that draws t and a mask itself, ``AlphaScheduler`` for a trainer that asks a scheduler for
``alpha(i)``. Neither holds a formula of its own, and importing them loads torch only.
"""

from stabledllm.integrations.alpha import AlphaScheduler
from stabledllm.integrations.noise import Noise, NoisyRows

__all__ = ["AlphaScheduler", "Noise", "NoisyRows"]
