"""What readers are shown for the names in stored results: components, methods and metrics."""

from __future__ import annotations

COMPONENT_LABELS = {"mask_pattern": "A  mask pattern", "mask_rate": "B  mask rate", "data": "C  data"}
"""A, B and C, in the order in which they are stacked."""

_PARTS = {
    "standard": "Standard",
    "ppots": "P-POTS",
    "ppots-gradient": "P-POTS on the gradient",
    "ppots-head": "P-POTS on the head's gradient",
    "adaptive": "Adaptive",
    "mirror": "MIRROR",
    "multisample": "MultiSample",
    "partition": "Partition",
    "strats": "StraTS",
    "lowdisc": "LowDisc",
    "clipped": "Clipped",
    "isad": "ISAD",
    "isad-exact": "ISAD-exact",
    "syrm": "SyRM",
    "ema": "EMA",
    "fixedcount": "FixedCount",
    "complement": "Complement",
    "espo": "ESPO",
    "coupled": "Coupled-GRPO",
    "one-step": "One step (d1)",
    "unigrpo": "UniGRPO",
}

METRIC_LABELS = {
    "validation_nll": "Validation NLL (nats per token)",
    "validation_objective": "Trained objective (nats per token)",
    "accuracy": "Accuracy",
    "clip_score": "CLIP score",
    "preference_loss": "Loss of held-out pairs (nats)",
    "preference_accuracy": "Accuracy on held-out pairs",
    "preference_margin": "Margin of held-out pairs",
    "reward": "Reward at the end of training",
}
METRIC_NAMES = {
    "validation_nll": "validation NLL",
    "validation_objective": "trained objective",
    "accuracy": "accuracy",
    "clip_score": "CLIP score",
    "preference_loss": "loss of held-out pairs",
    "preference_accuracy": "accuracy on held-out pairs",
    "preference_margin": "margin of held-out pairs",
    "reward": "reward at the end of training",
}
"""The same within a sentence."""
LOWER_IS_BETTER = {
    "validation_nll": True,
    "validation_objective": True,
    "accuracy": False,
    "clip_score": False,
    "preference_loss": True,
    "preference_accuracy": False,
    "preference_margin": False,
    "reward": False,
}
CURVES = {
    "reward": "reward",
    "reward_std": "sd of rewards within a group",
    "frac_reward_zero_std": "share of groups with equal rewards",
    "completions/mean_length": "tokens of a response",
    "completions/clipped_ratio": "share of responses cut off",
    "kl": "divergence from the reference",
    "ratio/mean": "ratio to the old policy",
    "rewards/margins": "margin of pairs",
    "rewards/accuracies": "share of pairs ranked right",
    "rewards/chosen": "reward of chosen responses",
    "rewards/rejected": "reward of rejected responses",
    "loss_bias": "bias of the loss by noise (nats)",
}
"""What is drawn over the steps of policy gradients and preferences, by its name in the log; see :func:`curve_label`."""


def label(method: str) -> str:
    """The method's name for readers: ``P-POTS + MIRROR`` for ``ppots+mirror``.

    >>> label("standard@1.5x")
    'Standard at 1.5x'
    """
    if "@" in method:  # Standard's runs at another budget
        method, _, budget = method.partition("@")
        return f"{label(method)} at {budget}"
    return " + ".join(_part_label(part) for part in method.split("+"))


def _part_label(part: str) -> str:
    name = part.rstrip("0123456789")
    return f"{_PARTS[name]}-{part.removeprefix(name)}" if name != part and name in _PARTS else _PARTS.get(part, part)


def exact(value: float) -> str:
    """A number as short as tells it from every other.

    >>> exact(0.002), exact(1.0), exact(1e-5)
    ('0.002', '1', '1e-05')
    """
    return repr(float(value)).removesuffix(".0")


def clipping(norm: float | None) -> list[str]:
    """How gradients are clipped, in words; an empty list where that is not varied.

    >>> clipping(1.0), clipping(0.0), clipping(None)
    (['clipped at 1'], ['unclipped'], [])
    """
    if norm is None:
        return []
    return [f"clipped at {exact(norm)}" if norm else "unclipped"]


def place(learning_rate: float | None = None, max_grad_norm: float | None = None) -> list[str]:
    """A place in a grid of learning rates, in words; an empty list without a grid.

    >>> place(0.002, 0.0), place(0.002), place()
    (['learning rate 0.002', 'unclipped'], ['learning rate 0.002'], [])
    """
    rate = [] if learning_rate is None else [f"learning rate {exact(learning_rate)}"]
    return [*rate, *clipping(max_grad_norm)]


def metric_name(metric: str) -> str:
    """The metric's name within a sentence."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def metric_label(metric: str) -> str:
    """The metric's name for readers, with its unit."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def curve_label(name: str) -> str | None:
    """What a figure of the log is called where it is drawn over the steps; None for one that is not drawn.

    >>> curve_label("rewards/short/mean"), curve_label("grad_norm")
    ('reward: short', None)
    """
    if name in CURVES:
        return CURVES[name]
    kind, _, rest = name.partition("/")
    return f"reward: {rest.removesuffix('/mean')}" if kind == "rewards" and rest.endswith("/mean") else None
