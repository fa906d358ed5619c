"""This library's noise in another training loop; ``docs/use_in_your_loop.md`` shows the lines to change.

``Noise`` is for a loop that draws t and a mask itself, ``AlphaScheduler`` for a trainer that asks a scheduler for
``alpha(i)``; the others are for one trainer each. None holds a formula of its own, and importing them loads torch only.
"""

from importlib import import_module

_HOME = {
    "AlphaScheduler": "alpha",
    "AutomodelNoise": "automodel",
    "DllmNoise": "dllm",
    "DreamNoise": "dream",
    "Noise": "noise",
    "NoisyCollator": "collator",
    "NoisyRows": "noise",
    "SFTNoise": "sft",
    "noisy_batch": "collator",
    "step_positions": "step",
    "weighted_loss": "collator",
}
__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'stabledllm.integrations' has no attribute '{name}'")
    return getattr(import_module(f"stabledllm.integrations.{_HOME[name]}"), name)
