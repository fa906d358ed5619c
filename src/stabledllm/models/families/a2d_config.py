"""Configurations of converted autoregressive models, in the keys of dllm's A2D checkpoints."""

from __future__ import annotations

from typing import Any

from stabledllm.models.families.decoder_config import DecoderConfig

_ANNEALING = ("anneal_steps", "annealed_steps")


class A2DConfig(DecoderConfig):
    """What the three configurations share.

    Args:
        shift_logits: position i is predicted by the hidden state at i - 1, as in the original; False where a file
            lacks the key, as in dllm's checkpoints.
        anneal_steps: optimizer steps over which training widens the attention from causal to full; None: it is full.
        annealed_steps: how many of them have been made.
    """

    model_type = "a2d"

    def __init__(
        self,
        shift_logits: bool = False,
        anneal_steps: int | None = None,
        annealed_steps: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.shift_logits = shift_logits
        self.anneal_steps = anneal_steps
        self.annealed_steps = annealed_steps

    def _changed(self, read: dict[str, Any]) -> dict[str, Any]:
        # Once all steps of annealing are made, the model is like any other.
        return {key: getattr(self, key) for key in _ANNEALING}


class A2DLlamaConfig(A2DConfig):
    """The configuration of a converted Llama."""

    model_type = "a2d-llama"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class A2DQwen2Config(A2DConfig):
    """The configuration of a converted Qwen2 or Qwen2.5."""

    model_type = "a2d-qwen2"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class A2DQwen3Config(A2DConfig):
    """The configuration of a converted Qwen3 without experts; a head is 128 wide where a file does not say it."""

    model_type = "a2d-qwen3"
    _head_dim = 128

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
