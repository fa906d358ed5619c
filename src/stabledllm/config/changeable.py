"""The keys that change no number of a run, and those that may change on its way (``allow_changed``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stabledllm.config.settings.average import AverageSettings
from stabledllm.errors import UserError, did_you_mean
from stabledllm.runtime.sameness import Differences

FREE = {
    "out", "allow_changed", "micro_batch", "views_per_forward", "generate_batch", "log_every", "save_every",
    "eval_every", "untuned", "allow_pickle", "trainer", "callbacks", "spikes",
}  # fmt: skip
"""Settings that change no number: where files lie, how a step is split, what is logged and saved on the way.
Callbacks too: noise, order and loss do not depend on them."""
FREE_OF_TRAINER = (
    "logging_", "log_", "disable_tqdm", "report_to", "run_name", "project", "trackio_", "eval_", "include_",
    "per_device_", "prediction_loss_only", "batch_eval_metrics", "save_", "enable_jit_checkpoint", "push_to_hub",
    "hub_", "restore_callback_states", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent",
    "dataloader_prefetch", "dataloader_multiprocessing", "dataloader_in_order", "ddp_", "fsdp", "parallelism_config",
    "use_cpu", "use_cache", "debug", "skip_memory_metrics", "do_", "local_rank", "torch_empty_cache_steps",
    "gradient_checkpointing", "activation_checkpointing", "average_tokens_across_devices", "output_dir", "label_names",
    "resume_from_checkpoint",
)  # fmt: skip
"""Beginnings of the names of TrainingArguments that change no number."""
OF_THE_EVALUATION = ("eval_draws", "decoding", "image_decoding", "clip", "clip_weights")
MAY_CHANGE = (
    "steps", "epochs", "batch", "seed", "order_seed", "data", "packing", "group_by_length", "attention", "trainer",
    *OF_THE_EVALUATION,
)  # fmt: skip
"""Keys whose value may change on the way; all others have shaped the run's weights, density or counters already."""
NEVER = ("trainer.optim", "trainer.optim_args", "trainer.optim_target_modules", "trainer.deepspeed")

LEFT_OUT = {
    "objective.window": None, "objective.corrected": False, "objective.bell": None, "objective.tokens": "all",
    "method_options.bell": 2.0, "average": AverageSettings().model_dump(),
}  # fmt: skip
"""Keys that the identity of a run leaves out at these values, as runs older than they do."""


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


def allowed_among(compared: Differences, where: Path, what: str, allowed: Sequence[str]) -> list[str]:
    """The keys that differ, all of which ``allow_changed`` names.

    Args:
        what: what is expected at ``where``, the folder of the run that is there.

    Raises:
        UserError: one of them is not named, or no run can change it on its way; names both its values.
    """
    refused = {key: values for key, values in compared.differing.items() if not is_under(key, allowed) or key in NEVER}
    if refused:
        may = all(is_under(key, MAY_CHANGE) and key not in NEVER for key in refused)
        of_data = [key for key in refused if key.startswith("data.")]
        names = dict.fromkeys("data" if key in of_data and len(of_data) > 1 else key for key in refused)
        every = ", ".join(dict.fromkeys([*allowed, *names]))
        how = f", or allow_changed=[{every}] to go on from there" if may else ""
        Differences(refused, []).refuse(where, what, f"take another 'out' for another run{how}")
    return list(compared.differing)


def is_under(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of the names, or stands in one of their groups.

    >>> is_under("data.max_len", ["data"])
    True
    """
    return any(key == name or key.startswith(f"{name}.") for name in names)
