"""Measure and reduce the training noise of masked diffusion language models.

Importing this package loads nothing heavy: torch comes with the first name that is used, and
transformers, datasets and matplotlib only with the parts that need them.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Estimate": "stabledllm.stats.estimate",
    "UserError": "stabledllm.errors",
    "AlphaScheduler": "stabledllm.integrations",
    "Key": "stabledllm.noise.streams",
    "Lab": "stabledllm.lab.own.lab",
    "Method": "stabledllm.noise.methods",
    "MethodOptions": "stabledllm.noise.parts",
    "RowELBO": "stabledllm.forward.elbo",
    "Rows": "stabledllm.noise.methods",
    "Noise": "stabledllm.integrations",
    "Objective": "stabledllm.noise.objective",
    "elbo": "stabledllm.forward.elbo",
    "elbo_parts": "stabledllm.forward.elbo",
    "reduce_loss": "stabledllm.loss",
    "row_losses": "stabledllm.loss",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'stabledllm' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
