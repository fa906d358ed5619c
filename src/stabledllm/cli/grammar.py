"""What may be typed for each command's settings: one table behind ``KEY=VALUE``, ``--KEY VALUE``, help and completion.

The settings' classes are imported when they are first asked for, so that ``stabledllm --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from stabledllm.config.key_table import Key

_COMMON = {
    "data": "data.train", "max_len": "data.max_len", "pad_response_to": "data.pad_response_to",
    "objective": "objective.kind",
}  # fmt: skip
_OF_DECODING = {name: f"decoding.{name}" for name in ("length", "steps", "block", "temperature", "top_p")}
OF_OTHERS = (
    "lr", "bs", "batch_size", "num_epochs", "num_train_epochs", "max_steps", "train_steps", "dataset", "dataset_name",
    "train_file", "train_data", "data_path", "eval_file", "eval_data", "validation_file", "val_data", "test_file",
    "model_name", "model_path", "model_id", "model_name_or_path", "pretrained_model_name_or_path", "base_model",
    "lora_r", "lora_rank", "lora_alpha", "lora_dropout", "max_length", "max_seq_len", "max_seq_length", "seq_len",
    "cutoff_len", "output", "output_dir", "out_dir", "save_dir", "logging_steps", "eval_steps", "save_steps",
    "scheduler", "optimizer", "max_grad", "grad_clip", "torch_dtype", "attn_implementation", "val_split",
    "validation_split", "block_length", "gen_length", "max_new_tokens", "max_tokens", "cfg", "cfg_scale",
)  # fmt: skip
"""Options of other programs that take the same value as a key of ours, which :mod:`config.other_names` knows."""


@dataclass(frozen=True)
class Grammar:
    """The settings of one command.

    ``kinds``: the classes in :mod:`stabledllm.config.settings` that hold them; the second is tried where the first has
    no such key. ``presets``: the command's own defaults of keys. ``short``: further names of keys. ``borrows``: the
    keys that it takes of the recipe of a training run; None where the recipe's keys are its own.
    """

    kinds: tuple[str, ...]
    presets: Mapping[str, Any] = field(default_factory=dict)
    short: Mapping[str, str] = field(default_factory=dict)
    borrows: tuple[str, ...] | None = None

    @property
    def kind(self) -> type[BaseModel]:
        """The class of the settings."""
        return self._classes[0]

    @cached_property
    def keys(self) -> dict[str, Key]:
        """Every key by its dotted name."""
        from stabledllm.config.key_table import keys_of

        whole: dict[str, Key] = {}
        for kind in reversed(self._classes):
            whole |= keys_of(kind)
        return whole

    @property
    def _classes(self) -> list[type[BaseModel]]:
        from stabledllm.config import settings

        return [getattr(settings, name) for name in self.kinds]

    def default(self, key: Key) -> str:
        """The default of a key in this command, as one would write it."""
        value = self.presets.get(key.name)
        return key.shown_default if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    def key(self, name: str) -> Key | None:
        """The key that a dotted name stands for, or the one that holds it, where users name the keys below it."""
        if name in self.keys:
            return self.keys[name]
        parts = name.split(".")
        above = (".".join(parts[:size]) for size in range(len(parts) - 1, 0, -1))
        return next((self.keys[one] for one in above if one in self.keys and self.keys[one].holds_any), None)

    @property
    def shorts(self) -> dict[str, str]:
        """The short names that this command reads, with their keys."""
        return {name: key for name, key in (_COMMON | dict(self.short)).items() if key in self.keys}

    def short_for(self, name: str) -> str | None:
        """The key that a short name of this command stands for."""
        return self.shorts.get(name)

    def named(self, name: str) -> bool:
        """Whether a name without dashes stands for a key, in whatever spelling is read."""
        return self.key(name) is not None or self.short_for(name) is not None or self.of_others(name) is not None

    def of_others(self, name: str) -> str | None:
        """The key that an option of another program stands for: of one of ours, or of transformers' arguments."""
        if f"trainer.{name}" in self.keys:
            return f"trainer.{name}"
        if name not in OF_OTHERS:
            return None
        from stabledllm.config.other_names import ELSEWHERE
        from stabledllm.config.trainer_keys import OURS

        meant = ELSEWHERE.get(name) or OURS[name]
        return meant if meant in self.keys else None

    def tree(self) -> dict:
        """The presets as a tree of keys, made anew."""
        from stabledllm.config.recipe import merge

        tree: dict = {}
        for name, value in self.presets.items():
            for part in reversed(name.split(".")):
                value = {part: value}
            merge(tree, value)
        return tree


_LOADING = (
    "model", "init_seed", "family", "dtype", "attention", "end_token", "mask_token_id", "trust_remote_code",
    "allow_pickle",
)  # fmt: skip
_MEASURED = (*_LOADING, "data", "method_options", "objective", "methods", "block_size", "block_start")
_RECIPE = Grammar(("TrainSettings", "ExperimentSettings"))
GRAMMARS: dict[str, Grammar] = {
    "train": Grammar(("TrainSettings",)),
    "experiment": Grammar(("ExperimentSettings",)),
    "validate": _RECIPE,
    "plan": _RECIPE,
    "fit": Grammar(
        ("TrainSettings",), {"data.train": "synthetic", "method": "ppots", "out": "runs/fit", "seed": 0},
        borrows=(
            *_LOADING, "data", "method", "method_options", "objective", "ppots", "block_size", "block_t", "batch",
            "lora", "quantised",
        ),
    ),
    "decompose": Grammar(
        ("DecomposeSettings",), {"data.train": "synthetic"}, borrows=_MEASURED
    ),
    "recommend": Grammar(
        ("DecomposeSettings",), {"data.train": "synthetic", "gradient": True, "out": "runs/recommend"},
        borrows=_MEASURED,
    ),
    "eval": Grammar(
        ("EvalSettings",), {"data.train": "synthetic"},
        _OF_DECODING | {"batch": "generate_batch", "likelihood": "likelihood.kinds"},
        (*_LOADING, "data", "decoding", "image_decoding", "clip", "generate_batch"),
    ),
    "generate": Grammar(
        ("GenerateSettings",), short=_OF_DECODING | {"seed": "decoding.seed", "batch": "generate_batch"},
        borrows=(*_LOADING, "decoding", "image_decoding", "generate_batch"),
    ),
    "encode": Grammar(("ImageSettings",)),
}  # fmt: skip
"""The grammar of every command that has settings."""
