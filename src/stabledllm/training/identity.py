"""The identity of a run: everything that decides its numbers, so that another run is never taken for it.

Every setting is part of it unless it is named here as one that changes no number. So is what lies behind a name: the
content of the data, the model's weights, a fitted density. The split over devices is not.
"""

from __future__ import annotations

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from stabledllm.build import build_method
from stabledllm.config.changeable import FREE, FREE_OF_TRAINER, LEFT_OUT
from stabledllm.config.settings import TrainSettings
from stabledllm.config.settings.preference import OF_THE_POLICY
from stabledllm.data.data_key import WITHOUT_EFFECT
from stabledllm.data.images import are_images, image_tokenizer
from stabledllm.data.splits import has_test
from stabledllm.errors import UserError
from stabledllm.evaluation.identity import digest_of, fingerprint
from stabledllm.models.new import is_new, pattern_of
from stabledllm.noise.methods import Method
from stabledllm.ppots.record import FittedDensity
from stabledllm.rewards.reward import Rewards
from stabledllm.runtime.sameness import Differences, differences
from stabledllm.runtime.secrets import hidden

_FREE_DATA = {"image", *WITHOUT_EFFECT}
"""Settings of the data that are no part of it; ``image`` has a place of its own."""
_UNORDERED = ("target_modules", "modules_to_save")
"""Lists of ``lora`` whose order has no effect."""
_OWN_TRAINER = {
    "seed", "max_steps", "num_train_epochs", "gradient_accumulation_steps", "remove_unused_columns", "logging_steps",
}  # fmt: skip
"""TrainingArguments that keys of ours set; those keys are in the identity themselves."""


def identity_of(settings: TrainSettings, method: Method, defaults: dict[str, Any]) -> dict:
    """The identity of a run in the form that JSON gives back; :func:`with_content` adds ``data.content``.

    Args:
        defaults: our defaults of TrainingArguments, where they differ from transformers'.

    Raises:
        UserError: a model, an image tokenizer or a density is missing.
    """
    return _as_read(_settings_alone(settings, method, defaults) | _behind_names(settings))


def _settings_alone(settings: TrainSettings, method: Method, defaults: dict[str, Any]) -> dict:
    dump = settings.model_dump()
    images = are_images(settings.data.train)
    draws_images = are_images(settings.data.test or settings.data.train)
    tested = has_test(settings.data)
    identity = {
        # First, so that a refusal names it where several keys differ.
        "method": method.name,
        **{key: value for key, value in dump.items() if key not in FREE},
        "adaptive": dump["adaptive"] if method.adaptive else None,
        "objective": settings.objective.keys,
        "dpo": _dpo(dump["dpo"]) if settings.objective.kind == "dpo" else None,
        "grpo": _grpo(dump["grpo"]) if settings.objective.kind == "grpo" else None,
        "ppots": dump["ppots"] if method.needs_p and not settings.p_of_t else None,
        "p_of_t": None,  # the digest of its content counts instead
        "init_seed": (settings.init_seed or 0) if is_new(settings.model) else None,
        "epochs": settings.epochs if settings.steps is None else None,
        "router": dump["router"] if any(dump["router"].values()) else None,
        "caption_dropout": settings.data.image.caption_dropout if images else None,
        "image_tokenizer": settings.data.image.tokenizer if images else None,
        "decoding": dump["decoding"] if tested and not draws_images else None,
        "image_decoding": dump["image_decoding"] if draws_images else None,
        "clip": settings.clip if draws_images else None,
        "trainer": trainer_in_force(settings, defaults),
    }
    identity["data"] = {key: value for key, value in dump["data"].items() if key not in _FREE_DATA}
    if not settings.data.streaming:  # as runs before there were streams say it
        identity["data"] |= {"streaming": None, "shuffle_buffer": None}
    identity["data"]["image"] = _image(dump["data"]["image"]) if images else None
    return identity


def _dpo(dpo: dict) -> dict:
    apart = ("reference", "tokens_per_forward")  # where the same values come from, and how they are split
    return {key: value for key, value in dpo.items() if key not in apart}


def _grpo(grpo: dict) -> dict:
    apart = ("reference", "tokens_per_forward")
    return {key: value for key, value in grpo.items() if key not in apart}


def of_rewards(rewards: Rewards) -> dict:
    """What the identity of a run holds of its rewards: their names, and a digest of each function of the user's."""
    return {"rewards": {"names": rewards.names, "sources": rewards.digests}}


def _image(image: dict) -> dict:
    apart = ("cache", "caption_dropout", "tokenizer")  # the first has no effect; the other two have keys of their own
    return {key: value for key, value in image.items() if key not in apart}


def trainer_in_force(settings: TrainSettings, defaults: dict[str, Any]) -> dict:
    """The values of all TrainingArguments that decide a number, given or default.

    So a default that is written out makes no difference, and another default in another version does.
    """
    fields = TrainingArguments.__dataclass_fields__
    values = {
        name: field.default if field.default is not MISSING else field.default_factory()
        for name, field in fields.items()
        if field.default is not MISSING or field.default_factory is not MISSING
    }
    values |= defaults | settings.trainer
    return {
        name: value
        for name, value in sorted(values.items())
        if name not in _OWN_TRAINER and not name.startswith(FREE_OF_TRAINER)
    }


def _number(value: Any) -> Any:
    """The number that a text spells, such as ``1e-3`` of older recipes, which TrainingArguments read as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _behind_names(settings: TrainSettings) -> dict:
    """Digests of the files that settings refer to by name: models, tokenizers and a density."""
    density = FittedDensity.load(Path(settings.p_of_t).expanduser()) if settings.p_of_t else None
    images, drawn = (are_images(spec) for spec in (settings.data.train, settings.data.test or settings.data.train))
    return {
        "weights": fingerprint(
            pattern_of(settings.model), code=settings.trust_remote_code, weights=not is_new(settings.model)
        ),
        "density": digest_of(density.record["density"]) if density else None,
        "image_tokenizer_weights": image_tokenizer(settings.data.image.tokenizer).fingerprint if images else None,
        **_reference(settings),
        "clip_weights": fingerprint(settings.clip) if settings.clip and drawn else None,
    }


def _reference(settings: TrainSettings) -> dict:
    """The digest of a reference that is no form of the policy."""
    kind = settings.objective.kind
    if kind == "dpo" and settings.dpo.reference not in OF_THE_POLICY:
        return {"dpo_reference": fingerprint(settings.dpo.reference, code=settings.trust_remote_code)}
    if kind == "grpo" and settings.grpo.beta and settings.grpo.reference not in OF_THE_POLICY:
        return {"grpo_reference": fingerprint(settings.grpo.reference, code=settings.trust_remote_code)}
    return {}


def with_content(identity: dict, digests: dict[str, str]) -> dict:
    """The identity with the digests of the data's content, from :class:`~stabledllm.data.bundle.Chosen`."""
    return identity | {"data": identity["data"] | ({"content": digests} if digests else {})}


def identity_of_record(record: dict, defaults: dict[str, Any]) -> dict:
    """The identity in a ``run.json``; an older one, without the data's content, is completed from its settings."""
    saved = record["identity"]
    if not isinstance(saved.get("data"), str):
        return saved
    try:
        trainer = {name: _number(value) for name, value in record["config"]["trainer"].items()}
        settings = TrainSettings.model_validate(record["config"] | {"trainer": trainer})
        completed = _settings_alone(settings, build_method(settings.method, settings), defaults)
    except (KeyError, ValueError, AttributeError, UserError):  # settings of another version
        return saved
    return _as_read(completed) | {key: value for key, value in saved.items() if key not in ("data", "dtype")}


def compare(saved: dict, wanted: dict) -> Differences:
    """The differences between two identities; equal data or weights under another name are none."""
    named = {f"data.{split}": f"data.content.{split}" for split in ("train", "validation", "test")}
    named["data.validation_share"] = "data.content.validation"
    named |= {"model": "weights", "image_tokenizer": "image_tokenizer_weights", "clip": "clip_weights"}
    return differences(_sorted(_in_todays_form(saved)), _sorted(wanted), named, LEFT_OUT)


def _in_todays_form(saved: dict) -> dict:
    """The identity with ``data`` as an object: runs older than the data's content only named their training data."""
    if not isinstance(saved.get("data"), str):
        return saved
    return saved | {"data": {"train": saved["data"]}, "dtype": saved.get("dtype") or "float32"}


def _sorted(identity: dict) -> dict:
    if not isinstance(lora := identity.get("lora"), dict):
        return identity
    return identity | {
        "lora": {
            key: sorted(value, key=str) if key in _UNORDERED and isinstance(value, list) else value
            for key, value in lora.items()
        }
    }


def _as_read(value: Any) -> Any:
    """The value as our files give it back: tuples are lists, what is not finite is null, and secrets are hidden."""
    return json.loads(json.dumps(hidden(value), default=str), parse_constant=lambda _: None)
