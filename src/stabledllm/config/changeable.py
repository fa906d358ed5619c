"""The keys that may have another value when a run goes on (``allow_changed``)."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.errors import UserError, did_you_mean

OF_THE_EVALUATION = ("eval_draws", "decoding", "image_decoding", "clip", "clip_weights")
MAY_CHANGE = (
    "steps", "epochs", "batch", "seed", "order_seed", "data", "packing", "group_by_length", "attention", "trainer",
    *OF_THE_EVALUATION,
)  # fmt: skip
"""Keys whose value may change on the way; all others have shaped the run's weights, density or counters already."""
NEVER = ("trainer.optim", "trainer.optim_args", "trainer.optim_target_modules", "trainer.deepspeed")


def refuse_unchangeable(allowed: Sequence[str]) -> None:
    """Refuse keys that no run can change on its way.

    Raises:
        UserError: names the first such key.
    """
    for key in allowed:
        if key.partition(".")[0] not in MAY_CHANGE or key in NEVER:
            raise UserError(
                f"key 'allow_changed': expected a key that a run can change on its way, found '{key}'"
                f"{did_you_mean(key, MAY_CHANGE)}."
            )
