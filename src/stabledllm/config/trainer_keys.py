"""The keys ``trainer.NAME``: which of transformers' TrainingArguments are honoured, with their types and ranges.

Every field of the installed version is in one of three tables: :class:`TrainerSettings` (honoured), :data:`OURS`
(a key of the recipe decides it) and :data:`REFUSED` (it would have no effect here, or break what the run promises). A
field that is in no table, from a newer version of transformers, is refused as well: nobody has checked that it acts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stabledllm.config.trainer_table import FIELDS, OPTIMIZERS, SCHEDULES
from stabledllm.config.typed import Strict
from stabledllm.errors import nearest

Optimizer = Literal[tuple(OPTIMIZERS)]
Scheduler = Literal[tuple(SCHEDULES)]
Level = Literal["debug", "info", "warning", "error", "critical", "passive"]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Names = str | list[str]


class TrainerSettings(Strict):
    """The fields that have an effect, by transformers' names; a field that is not given keeps transformers' default."""

    learning_rate: NotNegative = 5e-5
    lr_scheduler_type: Scheduler = "linear"
    lr_scheduler_kwargs: dict[str, Any] | None = None
    warmup_steps: NotNegative = 0
    optim: Optimizer = "adamw_torch_fused"
    optim_args: str | None = None
    optim_target_modules: Names | None = None
    weight_decay: NotNegative = 0.0
    adam_beta1: Beta = 0.9
    adam_beta2: Beta = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: NotNegative = 1.0
    bf16: bool = False
    fp16: bool = False
    tf32: bool | None = None
    activation_checkpointing: bool | None = None
    activation_checkpointing_kwargs: dict[str, Any] | None = None
    gradient_checkpointing: bool | None = None
    gradient_checkpointing_kwargs: dict[str, Any] | None = None
    torch_compile: bool = False
    torch_compile_backend: str | None = None
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = (
        None
    )
    neftune_noise_alpha: NotNegative | None = None
    torch_empty_cache_steps: Count | None = None
    logging_first_step: bool = False
    log_on_each_node: bool = True
    log_level: Level = "passive"
    log_level_replica: Level = "warning"
    disable_tqdm: bool | None = None
    report_to: Names | None = None
    run_name: str | None = None
    eval_delay: NotNegative = 0
    eval_on_start: bool = False
    save_total_limit: Count | None = None
    full_determinism: bool = False
    use_cpu: bool = False
    dataloader_num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    dataloader_pin_memory: bool = True
    dataloader_persistent_workers: bool = False
    dataloader_prefetch_factor: Count | None = None
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    ddp_find_unused_parameters: bool | None = None
    ddp_bucket_cap_mb: Count | None = None
    ddp_broadcast_buffers: bool | None = None
    ddp_static_graph: bool | None = None
    ddp_backend: Literal["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"] | None = None
    ddp_timeout: Annotated[int, Field(ge=1, le=10**9)] = 1800
    deepspeed: dict[str, Any] | str | None = None


OURS = {
    "output_dir": "out",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch (rows per device and forward) and batch (rows per optimizer step)",
    "gradient_accumulation_steps": "micro_batch (rows per device and forward) and batch (rows per optimizer step)",
    "logging_steps": "log_every",
    "logging_strategy": "log_every",
    "eval_strategy": "eval_every",
    "eval_steps": "eval_every",
    "save_strategy": "save_every",
    "save_steps": "save_every",
    "seed": "seed",
    "data_seed": "order_seed",
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "group_by_length",
    "auto_find_batch_size": "micro_batch; 'stabledllm plan' says what fits",
    "use_cache": "decoding.cache",
    "resume_from_checkpoint": "the same 'out': the same command continues its last checkpoint",
    "do_train": "the command 'stabledllm train'",
    "do_eval": "eval_every, or the command 'stabledllm eval'",
    "do_predict": "data.test, or the command 'stabledllm generate'",
    "local_rank": "accelerate launch",
    "fsdp": "accelerate launch --config_file, with 'stabledllm cp accelerate/fsdp2'",
    "fsdp_config": "accelerate launch --config_file, with 'stabledllm cp accelerate/fsdp2'",
}
"""Fields that something else decides, and what to write instead."""

_EVALUATION = (
    "the evaluation loss is the standard objective on all validation rows; see eval_every, eval_draws, data.validation"
)
_HUB = "a run sends nothing over the network; upload its 'out'/model afterwards, with 'hf upload'"
_LAST = "the last step's model is kept, since one chosen by its validation loss would be scored on what chose it"
_ORDER = "the order of the rows and what each step draws would change; see seed, order_seed, batch, micro_batch"
REFUSED = {
    **dict.fromkeys(
        (
            "per_device_eval_batch_size", "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object",
            "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "label_names", "bf16_full_eval",
            "fp16_full_eval",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(
        (
            "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
            "hub_revision", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
        ),
        _HUB,
    ),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _LAST),
    **dict.fromkeys(
        ("dataloader_drop_last", "dataloader_in_order", "accelerator_config", "parallelism_config", "ignore_data_skip"),
        _ORDER,
    ),
    "average_tokens_across_devices": "the loss is the mean over the step's rows; see objective.normalization",
    "label_smoothing_factor": "the objective is the cross-entropy of the masked tokens; see objective.weighting",
    "remove_unused_columns": "rows have the columns that the noise needs",
    "use_liger_kernel": "the models here make their logits in pieces already; leave it out",
    "liger_kernel_config": "the models here make their logits in pieces already; leave it out",
    "logging_nan_inf_filter": "a loss that is not finite is shown, and ends the run; leave it out",
    "include_num_input_tokens_seen": "a run counts its forward_passes; leave it out",
    "skip_memory_metrics": "memory is not measured in a run; see 'stabledllm plan'",
    "save_only_model": "a checkpoint without its optimizer cannot be continued; the weights alone are in 'out'/model",
    "save_on_each_node": "'out' is one folder that all nodes share",
    "enable_jit_checkpoint": "a run that is stopped continues from its last checkpoint; see save_every",
    "debug": "its hooks fail on the masks' tensors; a loss that is not finite ends the run and says where",
    "restore_callback_states_from_checkpoint": "a run that continues always restores them",
}  # fmt: skip
"""Fields that nothing here can honour, and why."""


_OTHER_NAMES = {
    "lr": "trainer.learning_rate", "wd": "trainer.weight_decay", "warmup": "trainer.warmup_steps",
    "optimizer": "trainer.optim", "scheduler": "trainer.lr_scheduler_type", "no_cuda": "trainer.use_cpu=true",
    "group_by_length": "group_by_length", "epochs": "epochs", "steps": "steps", "batch": "batch",
    "batch_size": "batch", "beta1": "trainer.adam_beta1", "beta2": "trainer.adam_beta2",
    "betas": "trainer.adam_beta1 and trainer.adam_beta2", "grad_clip": "trainer.max_grad_norm",
    "wandb": "trainer.report_to=wandb", "num_workers": "trainer.dataloader_num_workers", "lora": "lora.rank",
    "output": "out", "out": "out", "save_every": "save_every", "eval_every": "eval_every", "log_every": "log_every",
    "warmup_ratio": "trainer.warmup_steps, which is a share of the steps below 1",
    "average": "average.ema, average.tail or average.power", "ema": "average.ema", "ema_decay": "average.ema",
    "evaluation_strategy": "eval_every", "dtype": "dtype", "method": "method", "seed_everything": "seed",
}  # fmt: skip
"""What people write under ``trainer``, with the key that they mean."""
_EARLY = "there is no early stopping: the last step's model is kept; steps and epochs say when it ends"
_SEVERAL = "CUDA_VISIBLE_DEVICES before the command chooses the devices, accelerate launch uses several"
NOT_THERE = {
    "early_stopping": _EARLY, "early_stopping_patience": _EARLY, "early_stopping_threshold": _EARLY,
    "patience": _EARLY,
    "resume": "the same command continues the run in its 'out'",
    "resume_from": "the same command continues the run in its 'out'",
    "overwrite_output_dir": "a finished run in 'out' is never overwritten; write another out",
    "device": "--device NAME (cpu, cuda, cuda:N, mps) behind the command chooses the device",
    "gpu": "--device NAME (cpu, cuda, cuda:N, mps) behind the command chooses the device",
    **dict.fromkeys(("gpus", "num_gpus", "n_gpus", "num_processes", "nproc_per_node", "world_size"), _SEVERAL),
    "shuffle": "rows are always dealt in a random order, that of order_seed",
    "config": "a recipe's file stands first: stabledllm train FILE.yaml",
    "name": "a run is known by its folder, out=FOLDER; in a logging back end by trainer.run_name",
    "project": "a logging back end takes it from the environment, such as WANDB_PROJECT",
    "verbose": "log_every says how often a line is printed",
}  # fmt: skip
"""What people look for and this program has none of, with what there is instead."""


def refusal(name: str, base: str = "") -> str:
    """The clause that says what is wrong with ``trainer.NAME`` and what to write instead.

    Args:
        base: what stands before the keys of a run, ``base.`` in an experiment.
    """
    if name in OURS:
        return f"set by the recipe's own keys; write {base}{OURS[name]} instead"
    if name in REFUSED:
        return f"expected none, since {REFUSED[name]}"
    if name in _OTHER_NAMES:
        return f"unknown to TrainingArguments; write {base}{_OTHER_NAMES[name]}"
    if name in NOT_THERE:
        return f"unknown to TrainingArguments; {NOT_THERE[name]}"
    every_name = dict.fromkeys((*TrainerSettings.model_fields, *OURS, *REFUSED, *FIELDS))
    near = nearest(name, every_name)
    meant = f" (did you mean '{near}'?)" if near else "; docs/settings.md says which are honoured"
    if near in OURS:
        meant += f"; write {base}{OURS[near]}"
    return f"unknown to TrainingArguments, or not known here to have an effect{meant}"
