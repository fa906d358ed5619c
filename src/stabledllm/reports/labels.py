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
}

METRIC_LABELS = {
    "validation_nll": "Validation NLL (nats per token)",
    "validation_objective": "Trained objective (nats per token)",
    "accuracy": "Accuracy",
    "clip_score": "CLIP score",
    "preference_loss": "Loss of held-out pairs (nats)",
    "preference_accuracy": "Accuracy on held-out pairs",
    "preference_margin": "Margin of held-out pairs",
}
METRIC_NAMES = {
    "validation_nll": "validation NLL",
    "validation_objective": "trained objective",
    "accuracy": "accuracy",
    "clip_score": "CLIP score",
    "preference_loss": "loss of held-out pairs",
    "preference_accuracy": "accuracy on held-out pairs",
    "preference_margin": "margin of held-out pairs",
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
}


def label(method: str) -> str:
    """The method's name for readers: ``P-POTS + MIRROR`` for ``ppots+mirror``."""
    return " + ".join(_part_label(part) for part in method.split("+"))


def _part_label(part: str) -> str:
    name = part.rstrip("0123456789")
    return f"{_PARTS[name]}-{part.removeprefix(name)}" if name != part and name in _PARTS else _PARTS.get(part, part)


def metric_name(metric: str) -> str:
    """The metric's name within a sentence."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def metric_label(metric: str) -> str:
    """The metric's name for readers, with its unit."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))
