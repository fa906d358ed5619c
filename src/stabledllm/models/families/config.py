"""Configurations in the hub's own keys: read as published, written back as published."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from transformers import PretrainedConfig

from stabledllm.errors import UserError

# transformers records these itself; every other key of the file is the model's.
_OURS = {"dtype", "_commit_hash"}
_TIED = ("tie_word_embeddings", "weight_tying")


class HubConfig(PretrainedConfig):
    """A ``config.json`` of the hub; every key that was read is written back with the value that was read.

    The original code can therefore load what this library saves, whatever transformers version it was written for.

    ``required`` maps each key that would change the mathematics to the only values that are implemented. The first of
    them is used where a file lacks the key, and for a new model.

    Raises:
        UserError: a key of ``required`` with another value.
    """

    required: ClassVar[dict[str, tuple]] = {}
    _mask_taken = False

    def take_mask(self, token: int) -> None:
        """Take another mask token than the file's or the layout's; the saved config says it."""
        self.mask_token_id, self._mask_taken = token, True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        for key, allowed in cls.required.items():
            if key in config_dict and config_dict[key] not in allowed:
                shown = " or ".join(str(value) for value in allowed)
                raise UserError(f"config.json: {key}: expected {shown}, found {config_dict[key]!r}.")
        read = copy.deepcopy({key: value for key, value in config_dict.items() if key not in _OURS})
        # A required key is no setting: it is kept with the values that were read, and is no attribute.
        settings = {key: value for key, value in config_dict.items() if key not in cls.required}
        if "rope_scaling" in cls.required:
            settings = _unscaled(settings.pop("rope_parameters", None)) | settings
        loaded = super().from_dict(settings, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config._read = read
        return loaded

    def to_dict(self) -> dict[str, Any]:
        return self._as_file(super().to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        return self._as_file(super().to_diff_dict())

    def _as_file(self, written: dict[str, Any]) -> dict[str, Any]:
        written.pop("_mask_taken", None)
        return self._restored(written) | ({"mask_token_id": self.mask_token_id} if self._mask_taken else {})

    def _restored(self, written: dict[str, Any]) -> dict[str, Any]:
        written.pop("_read", None)
        read = getattr(self, "_read", None)
        if read is None:
            return {key: allowed[0] for key, allowed in self.required.items()} | written
        restored = written | copy.deepcopy(read)
        # The only key of the file that may change after loading: see models.adapters._untie.
        return restored | {key: getattr(self, key) for key in _TIED if key in restored}


def _unscaled(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """The keys of rotations from the form that transformers 5 writes them in, for models that scale none of them."""
    if not parameters:
        return {}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise UserError(f"config.json: rope_parameters: expected rope_type default, found {kind!r}.")
    return {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}


def take_mask(config: PretrainedConfig, token: int, what: str) -> None:
    """Give a model of a native family another mask token.

    Args:
        what: begins the error message.

    Raises:
        UserError: a model of another family, whose mask token its tokenizer alone names, or which has none.
    """
    if not isinstance(config, HubConfig):
        raise UserError(
            f"{what}: expected no mask_token_id for a {config.model_type}, whose mask token, if it has one, its "
            f"tokenizer names, found {token}."
        )
    config.take_mask(token)
