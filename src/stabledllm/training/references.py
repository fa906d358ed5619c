"""Makes the model that a policy is held against, from the name that a setting gives it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from stabledllm.build import loading_options
from stabledllm.config.settings import TrainSettings
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.preference.reference import AdapterOff, FrozenCopy, FrozenModel, Reference, check_reference
from stabledllm.training.devices import shard_beside
from stabledllm.training.responses import ResponseTrainer


def reference_of(
    settings: TrainSettings, loaded: LoadedModel, kind: str, key: str
) -> Callable[[ResponseTrainer], Reference]:
    """What makes the reference, from a Trainer that has not made a step and whose model is on its device.

    Args:
        kind: ``copy``, ``adapter``, or the name of another model, which is loaded now. key: of the setting.

    Raises:
        UserError: another model that cannot be set beside the policy.
    """
    if kind == "copy":
        return lambda trainer: FrozenCopy(trainer.model, partial(shard_beside, trainer))
    if kind == "adapter":
        return lambda trainer: AdapterOff(trainer.model, key)
    other = load_model(kind, **loading_options(settings) | {"init_seed": None})
    if settings.block_size and hasattr(other.model.config, "block_size"):
        other.model.config.block_size = settings.block_size
    check_reference(loaded, other, key)
    return lambda trainer: FrozenModel(other.model, partial(shard_beside, trainer))
