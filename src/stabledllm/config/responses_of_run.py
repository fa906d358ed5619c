"""What a run on preferences or rewards brings to a measurement of its noise, where its folder is the model."""

from __future__ import annotations

from stabledllm.config.given_keys import changed, group_of, known
from stabledllm.config.settings import DecomposeSettings
from stabledllm.config.settings.preference import OF_THE_POLICY

_OF_RESPONSES = {
    "dpo": ("beta",),
    "grpo": (
        "reward", "reward_weights", "group", "scale", "ratio", "clip", "clip_high", "mean", "beta", "kl", "rollout",
    ),
}  # fmt: skip
"""For each kind of objective of which the noise is measured, what of a run's settings the measurement takes."""


def of_responses(config: dict, tree: dict) -> dict:
    """What a run on preferences or rewards says of its loss, for a measurement of the same kind.

    The model that it began with is the reference where it held its policy against that.
    """
    own = config.get("objective")
    kind = own.get("kind") if isinstance(own, dict) else None
    if kind not in _OF_RESPONSES or group_of(tree, "objective").get("kind", kind) != kind:
        return {}
    names, group = _OF_RESPONSES[kind], DecomposeSettings.model_fields[kind].default
    values = known(config.get(kind), type(group))
    below = changed({name: value for name, value in values.items() if name in names}, group)
    if kind == "dpo" or below.get("beta"):
        reference = values.get("reference")
        below["reference"] = config.get("model") if reference in OF_THE_POLICY else reference
    return {kind: below}
