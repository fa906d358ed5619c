"""Measure and reduce the training noise of masked diffusion language models.

Importing this package loads torch-only code: no transformers, datasets or matplotlib.
"""

from stabledllm.errors import UserError
from stabledllm.estimate import Estimate
from stabledllm.noise.methods import Method
from stabledllm.objective import Objective, reduce_loss

__version__ = "0.1.0"
__all__ = ["Estimate", "Method", "Objective", "UserError", "__version__", "reduce_loss"]
