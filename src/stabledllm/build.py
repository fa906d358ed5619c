"""Builds the library's plain objects from settings."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.config.settings import (
    AdaptiveSettings,
    DecodingSettings,
    DecomposeSettings,
    ImageDecodingSettings,
    ModelSettings,
    ObjectiveSettings,
    TrainSettings,
)
from stabledllm.data.images import are_images
from stabledllm.decoding import DecodingOptions, ImageOptions, refuse_unsuited
from stabledllm.errors import UserError
from stabledllm.method_checks import check_block_choices
from stabledllm.models.families.block_config import OwnBlocks
from stabledllm.models.image_choices import keep_image_choices
from stabledllm.models.loading import LoadedModel, is_adapter, load_model
from stabledllm.models.mask_choice import check_mask_choice
from stabledllm.models.new import is_new
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method, MethodOptions
from stabledllm.noise.objective import Objective
from stabledllm.noise.of_parts import OfParts
from stabledllm.noise.parts import STANDARD
from stabledllm.objective_checks import check_objective
from stabledllm.ppots.adaptive import PER_OCTAVE, AdaptiveDensity, AdaptiveOptions


def loading_options(settings: ModelSettings) -> dict:
    """The arguments of :func:`~stabledllm.models.loading.load_model` besides the model's name."""
    return {
        "dtype": getattr(torch, settings.dtype),
        "family": settings.family,
        "attention": settings.attention,
        "end_token": settings.end_token,
        "mask_token_id": settings.mask_token_id,
        "trust_remote_code": settings.trust_remote_code,
        "init_seed": settings.init_seed,
        "allow_pickle": settings.allow_pickle,
    }


def loading_beside(settings: ModelSettings, name: str) -> dict:
    """The same for a model beside the one of the settings, which a seed of new weights means nothing to unless it is
    new too."""
    return loading_options(settings) | ({} if is_new(name) else {"init_seed": None})


def build_model(settings: TrainSettings) -> LoadedModel:
    """The model that a run trains: the whole of it, fresh adapters on it, or an adapter to be trained further.

    Raises:
        UserError: the model does not load, or its quantised weights would have to be trained.
    """
    if settings.quantised and not settings.lora and not is_adapter(settings.model):
        raise UserError(
            f"key 'quantised': expected 'lora' beside it, since weights in {settings.quantised} cannot be trained, "
            f"found none."
        )
    if settings.mask_token_id is not None:
        check_mask_choice(settings.mask_token_id, settings.model, adapted=bool(settings.lora))
    loaded = load_model(settings.model, quantised=settings.quantised, **loading_options(settings))
    if settings.lora is None:
        return loaded
    if is_new(settings.model):
        raise UserError(f"key 'lora': expected a trained model to adapt, found the new one '{settings.model}'.")
    from stabledllm.models.adapters import LoRAOptions, add_lora

    return add_lora(loaded, LoRAOptions(**settings.lora.model_dump()))


def set_form(loaded: LoadedModel, settings: TrainSettings) -> None:
    """Write ``block_size`` and the choices on images into the model's config, for decoding and evaluation.

    Raises:
        UserError: the model has no block form, was trained in other blocks, is to be decoded in other blocks or by
            options that do not fit it, or has no shift that ``block_start`` could mean.
    """
    _keep_block_size(loaded, settings)
    refuse_unsuited(loaded.model, build_decoding(settings.decoding))
    if are_images(settings.data.train):
        keep_image_choices(loaded.model.config, settings.data.image.model_dump())


def _keep_block_size(loaded: LoadedModel, settings: TrainSettings) -> None:
    size, decoding_block = settings.block_size, settings.decoding.block
    whole = not settings.lora and not is_adapter(settings.model)
    _refuse_other_blocks(loaded, size, whole=whole)
    check_block_choices(OfParts(settings.method), size, settings.block_t, settings.block_start)
    if not size:
        return
    _require_block_form(loaded)
    if decoding_block != size:
        raise UserError(
            f"key 'decoding.block': expected block_size = {size}, found {decoding_block}; write decoding.block={size}."
        )
    loaded.model.config.block_size = size
    keep_block_start(loaded, settings.block_start)


def set_blocks(loaded: LoadedModel, settings: DecomposeSettings) -> None:
    """Let a model be measured in the blocks of the settings, as training would begin in them.

    Raises:
        UserError: the model has no block form, was trained in other blocks, or has no shift that ``block_start`` could
            mean.
    """
    if settings.block_size:
        _refuse_other_blocks(loaded, settings.block_size, whole=not is_adapter(settings.model))
        _require_block_form(loaded)
        loaded.model.config.block_size = settings.block_size
    keep_block_start(loaded, settings.block_start)


def _refuse_other_blocks(loaded: LoadedModel, size: int | None, *, whole: bool) -> None:
    config = loaded.model.config
    trained = getattr(config, "block_size", None)
    # The published layouts are fine-tuned in other blocks than they were trained in; an adapter cannot say so.
    free = size and whole and getattr(config, "blocks_from_start", False)
    if trained and trained != size and not free:
        raise UserError(f"key 'block_size': expected {trained}, as model '{loaded.name}' was trained, found {size}.")


def _require_block_form(loaded: LoadedModel) -> None:
    if not hasattr(loaded.model.config, "block_size"):
        raise UserError(f"key 'block_size': expected a model with a block form, found '{loaded.name}'.")


def keep_block_start(loaded: LoadedModel, block_start: str) -> None:
    """Let what predicts a block's first token in training be that of the settings.

    Raises:
        UserError: another one than the usual for a model whose logits are not shifted.
    """
    config = loaded.model.config
    if block_start != "noisy":
        if not hasattr(config, "block_start"):
            raise UserError(
                f"key 'block_start': expected a model in blocks whose logits are shifted, such as Fast-dLLM v2, for "
                f"'{block_start}', found '{loaded.name}'."
            )
        config.block_start = block_start


def take_block(loaded: LoadedModel, block: int, *, given: bool) -> None:
    """Decode and evaluate in blocks of a given size a model whose config.json does not say its own; any other keeps it.

    Args:
        given: whether the user gave the block, and did not leave it to the model.
    """
    config = loaded.model.config
    if given and isinstance(config, OwnBlocks):
        config.adopt(block)


def build_method(name: str, settings: TrainSettings | DecomposeSettings) -> Method:
    """The method of that name with the settings' options, under their objective."""
    options = MethodOptions(**settings.method_options.model_dump())
    return Method.parse(name, options, build_objective(settings.objective))


def build_methods(settings: DecomposeSettings) -> list[Method]:
    """The methods to measure, Standard first; of the default list, only those that the objective can take."""
    names, objective = settings.methods, build_objective(settings.objective)
    if "methods" not in settings.model_fields_set:
        names = [name for name in names if Method.parse(name).takes(objective)]
    standard, *others = (build_method(name, settings) for name in (STANDARD, *names))
    return [standard, *(method for method in others if method.name != STANDARD)]


def build_objective(settings: ObjectiveSettings) -> Objective:
    """The objective of these settings.

    Raises:
        UserError: keys that do not go together.
    """
    check_objective(settings)
    return Objective(**settings.keys)


def build_decoding(settings: DecodingSettings) -> DecodingOptions:
    """The decoding options of these settings."""
    return DecodingOptions(**settings.model_dump())


def build_image_decoding(settings: ImageDecodingSettings) -> ImageOptions:
    """The options for drawing images of these settings."""
    return ImageOptions(**settings.model_dump())


def build_adaptive(
    settings: AdaptiveSettings,
    method: Method,
    start: Tabulated | None = None,
    size: Tensor | None = None,
    per_octave: int = PER_OCTAVE,
) -> AdaptiveDensity:
    """The adaptive density of a method with ``adaptive``.

    Args:
        start: the density that it starts from; uniform without it. size: maskable tokens of each row.
        per_octave: how finely second moments tell densities apart.
    """
    options = AdaptiveOptions(**settings.model_dump())

    def cost(t: Tensor) -> Tensor:
        return method.views.cost(t, size)

    return AdaptiveDensity(
        options, shared_noise=method.source.independent, cost=cost, eps=method.objective.floor, start=start,
        per_octave=per_octave,
    )  # fmt: skip
