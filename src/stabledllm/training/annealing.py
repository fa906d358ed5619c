"""Attention that widens from causal to full over the first optimizer steps of a converted model's training."""

from __future__ import annotations

from torch import nn
from transformers import TrainerCallback

from stabledllm.errors import UserError
from stabledllm.models.families.annealing import Annealing, rate_at
from stabledllm.noise.streams import Key


class AttentionAnnealing(TrainerCallback):
    """Sets each step's attention, drawn from the run's noise seed and the step, and counts the steps in the config.

    A run that ends earlier leaves the rest to the next one, which starts from its model; once all steps are made, the
    saved model is like any other. Evaluation and decoding always have full attention.

    Args:
        model: a model whose config has ``anneal_steps``, as ``stabledllm convert --anneal-steps`` makes it.
        seed: the run's noise seed.
    """

    def __init__(self, model: nn.Module, seed: int):
        self.model, self.seed = model, seed
        self.steps, self.made = model.config.anneal_steps, model.config.annealed_steps or 0

    def on_step_begin(self, args, state, control, **_):
        rate = rate_at(self.made + state.global_step, self.steps)
        self.model.annealing = Annealing(Key(self.seed, state.global_step), rate) if rate < 1 else None

    def on_step_end(self, args, state, control, **_):
        made, config = self.made + state.global_step, self.model.config
        left = made < self.steps
        config.anneal_steps, config.annealed_steps = (self.steps, made) if left else (None, None)

    def on_train_end(self, args, state, control, **_):
        self.model.annealing = None


def annealing_of(model: nn.Module, seed: int) -> AttentionAnnealing | None:
    """The callback for a model whose attention is still to be annealed; None for any other.

    Raises:
        UserError: an adapter on such a model, which could not keep the count, or flash attention, which takes no mask.
    """
    config = getattr(model, "config", None)
    if not getattr(config, "anneal_steps", None):
        return None
    if hasattr(model, "peft_config"):
        raise UserError(
            "key 'lora': expected a model whose attention is full, found one that is still to be annealed over "
            f"{config.anneal_steps} steps; train all of its weights first, or convert it with --anneal-steps 0."
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UserError(
            f"key 'attention': expected sdpa or eager for a model whose attention is annealed, found "
            f"'{config._attn_implementation}'."
        )
    return AttentionAnnealing(model, seed)
