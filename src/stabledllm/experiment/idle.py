"""Finds typed keys that do nothing in the command they are typed for: a note tells of them, or they are refused.

A note is enough for the groups of keys that many commands share (the probe's, a method's, the data's), since a script
may give the same ones to every method. A key that something else decides is refused. A recipe may hold idle keys
silently, since it serves many methods and data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stabledllm.config.settings import (
    DecomposeSettings,
    EvalSettings,
    ExperimentSettings,
    GradientSettings,
    TrainSettings,
)
from stabledllm.data.kinds import is_own
from stabledllm.data.splits import could_test, has_test, has_validation, is_held_out
from stabledllm.errors import UserError
from stabledllm.images.kinds import are_images
from stabledllm.models.new import is_new
from stabledllm.noise.of_parts import OfParts
from stabledllm.noise.parts import MASKER, PARTS, STANDARD, VIEWS
from stabledllm.noise.windows import CHOSEN
from stabledllm.tasks.registry import MADE


class Run(NamedTuple):
    """A training run by its settings and the parts of its method."""

    settings: TrainSettings
    method: OfParts


Acts = Callable[[TrainSettings, OfParts], bool]
Rules = dict[str, tuple[Acts, str]]
"""For a key, or a group of keys (with a dot at its end): whether it acts in a run, and what it needs for that."""


def _kind(spec: str | None) -> str:
    return (spec or "").partition(":")[0]


def _draws_tokens(run: TrainSettings) -> bool:
    decoding = run.decoding
    return decoding.temperature > 0 or decoding.order == "random" or decoding.schedule == "origin"


def _mentions(run: TrainSettings, kind: str) -> bool:
    return kind in map(_kind, (run.data.train, run.data.validation, run.data.test))


def _own_data(run: TrainSettings) -> bool:
    specs = (run.data.train, run.data.validation, run.data.test)
    return any(is_own(spec) for spec in specs if spec)


def _reads_hub(run: TrainSettings) -> bool:
    return _mentions(run, "hub")


def _reads_files(run: TrainSettings) -> bool:
    return _kind(run.data.train) not in MADE and not are_images(run.data.train)


def _text_is_decoded(run: TrainSettings, _: OfParts | None = None) -> bool:
    return has_test(run.data) and not are_images(run.data.test or run.data.train)


_DATA: Rules = {
    "data.image.": (lambda run, _: are_images(run.data.train), "data of pictures"),
    "data.text_fields": (lambda run, _: _own_data(run), "data.train=text:PATH"),
    "data.short_share": (lambda run, _: _own_data(run), "data.train=text:PATH"),
    "data.format": (lambda run, _: _own_data(run), "data of your own (data.train=PATH)"),
    "data.columns": (lambda run, _: _own_data(run), "data of your own (data.train=PATH)"),
    "data.split": (lambda run, _: _reads_hub(run), "data.train=hub:OWNER/NAME"),
    "data.subset": (lambda run, _: _reads_hub(run), "data.train=hub:OWNER/NAME"),
    "data.cache": (lambda run, _: _reads_files(run), "data in files"),
    "data.workers": (lambda run, _: _reads_files(run), "data in files"),
    "data.shuffle_buffer": (lambda run, _: run.data.streaming, "data.streaming=true"),
    "data.annotations": (lambda run, _: _mentions(run, "gsm8k"), "data of gsm8k"),
    "data.table": (lambda run, _: _mentions(run, "hitab"), "data of hitab"),
    "data.every_turn": (lambda run, _: _own_data(run), "data of your own (data.train=PATH)"),
    "data.system_prompt": (lambda run, _: not are_images(run.data.train), "data of text"),
    "data.few_shot": (lambda run, _: not are_images(run.data.train), "data of text"),
    "data.delimiters": (lambda _, method: "delimiter" in method.marks, "a method with isad"),
    "data.syntax": (lambda _, method: "syntax" in method.marks, "a method with syrm"),
}


def _reads(option: str) -> Acts:
    return lambda _, method: method.reads(option)


_METHODS: Rules = {
    f"method_options.{option}": (_reads(option), f"a method with {part.name}")
    for part in reversed(PARTS.values())  # where several parts read an option, the first is named
    for option in part.options
} | {
    "init_seed": (lambda run, _: is_new(run.model), "a new model (model=new:...)"),
}
_PROBE: Rules = {
    "ppots.check_proxy": (lambda _, method: method.signal == "output layer", "a method with ppots-head"),
    "ppots.design": (lambda _, method: method.needs_p and method.signal == "loss", "a method with ppots"),
    "ppots.": (lambda _, method: method.needs_p, "a method with ppots"),
}
_EVALUATED = (
    lambda run, _: has_validation(run.data),
    "rows to evaluate on (data.validation, or data.validation_share above 0)",
)
_RUN: Rules = {
    **_DATA,
    **_METHODS,
    **_PROBE,
    "adaptive.": (lambda _, method: method.adaptive, "a method with adaptive"),
    "epochs": (lambda run, _: run.steps is None, "steps=null beside it, since steps are set and decide"),
    "views_per_forward": (lambda _, method: _views(method) > 1, "a method of several views"),
    "data.validation_share": (
        lambda run, _: is_held_out(run.data),
        "data without a validation split of their own",
    ),
    "data.validation_rows": _EVALUATED,
    "eval_every": (lambda run, _: run.eval_every is None or has_validation(run.data), _EVALUATED[1]),
    "eval_draws": _EVALUATED,
    "untuned": (
        lambda run, _: has_validation(run.data) and not is_new(run.model),
        "a trained model (no new:...) and rows to evaluate on",
    ),
    "data.test": (lambda run, _: run.data.test_rows != 0, "rows of it to test (data.test_rows above 0)"),
    "data.test_rows": (lambda run, _: could_test(run.data), "data with test rows (data.test)"),
    "decoding.block": (lambda run, _: bool(run.block_size) or _text_is_decoded(run), "test rows to decode (data.test)"),
    "decoding.seed": (
        lambda run, _: _text_is_decoded(run) and _draws_tokens(run),
        "decoding that draws at random (decoding.temperature, decoding.order=random)",
    ),
    "decoding.": (_text_is_decoded, "test rows to decode (data.test); 'generate' and 'eval' of the run will take it"),
    "image_decoding.": (
        lambda run, _: has_test(run.data) and are_images(run.data.test or run.data.train),
        "pictures to draw (data.test)",
    ),
    "clip": (lambda run, _: has_test(run.data) and are_images(run.data.test or run.data.train), "pictures to draw"),
    "generate_batch": (
        lambda run, _: has_test(run.data) or run.objective.kind == "grpo",
        "test rows to decode (data.test)",
    ),
    "average.snapshots": (
        lambda run, _: bool(run.average.power),
        "average.power beside it, whose snapshots others are rebuilt from",
    ),
    "average.on_cpu": (
        lambda run, _: run.average.count > 0,
        "an average beside it (average.ema, average.tail or average.power)",
    ),
    "spikes.keep": (
        lambda run, _: not run.spikes.keep or bool(run.trainer.get("save_total_limit")),
        "trainer.save_total_limit beside it, without which every checkpoint is kept",
    ),
}
_SHARED = (
    "ppots", "adaptive", "method_options", "data", "decoding", "image_decoding", "clip", "generate_batch",
    "views_per_forward", "eval_every", "eval_draws", "untuned",
)  # fmt: skip
_EXPERIMENT = {"base.method": "methods", "base.seed": "seeds", "base.out": "out"}
_GRID = {"base.trainer.learning_rate": "learning_rates", "base.trainer.max_grad_norm": "max_grad_norms"}
_NOT_FITTED = (
    "trainer.", "steps", "epochs", "eval_every", "eval_draws", "untuned", "save_every", "log_every", "decoding.",
    "adaptive.", "image_decoding.", "clip", "generate_batch", "order_seed", "packing", "group_by_length",
    "views_per_forward", "micro_batch", "p_of_t", "callbacks", "spikes.", "average.", "data.validation_rows",
    "data.validation_share", "data.test_rows", "data.validation", "block_start", "dpo.correction",
)  # fmt: skip
_OF_SINGLE_ANSWERS = (
    "gradient", "rows", "rates", "masks", "design", "forwards", "steps", "block_size", "block_start",
    "method_options.", *(f"grad.{name}" for name in GradientSettings.model_fields if name != "parameters"),
)  # fmt: skip
"""Keys of ``decompose`` that nothing reads where the noise of preferences or of policy gradients is measured."""
_NOT_MEASURED = ("data.validation", "data.validation_rows", "data.validation_share", "data.test_rows")
_NOT_EVALUATED = (*_NOT_MEASURED, "data.train_rows", "data.validation", "data.streaming", "data.shuffle_buffer")


def idle_overrides(
    settings: TrainSettings | ExperimentSettings, runs: Sequence[Run], overrides: Sequence[str]
) -> list[str]:
    """A note on each override of ``train`` or ``experiment`` that has no effect on any of its runs.

    Raises:
        UserError: something else decides the key of an override.
    """
    prefix = "base." if isinstance(settings, ExperimentSettings) else ""
    all_notes = []
    for key in _keys(overrides):
        if prefix and key in _EXPERIMENT:
            raise UserError(f"key '{key}': expected {_EXPERIMENT[key]}, which decides it in an experiment.")
        if prefix and getattr(settings, _GRID.get(key, ""), None):
            raise UserError(f"key '{key}': expected {_GRID[key]} alone, which decides it here, found both.")
        all_notes += _notes_on(key, key.removeprefix(prefix), runs, _RUN)
        if f"{key}.".startswith("ppots.") and runs[0].settings.p_of_t:
            all_notes.append(f"note: key '{key}' does nothing: nothing is probed where p_of_t is given")
    return all_notes


def idle_in_fit(settings: TrainSettings, overrides: Sequence[str]) -> list[str]:
    """The same as :func:`idle_overrides` for ``fit``, which trains and decodes nothing."""
    runs = [Run(settings, OfParts(settings.method))]
    rules = _unused(_NOT_FITTED, "a key that 'fit' uses") | _DATA | _METHODS | _PROBE
    return [note for key in _keys(overrides) for note in _notes_on(key, key, runs, rules)]


def idle_in_decompose(settings: DecomposeSettings, overrides: Sequence[str]) -> list[str]:
    """The same as :func:`idle_overrides` for ``decompose`` and ``recommend``."""
    shared = {name: getattr(settings, name) for name in ("model", "init_seed", "data", "method_options", "objective")}
    run = TrainSettings().model_copy(update=shared)
    runs = [Run(run, OfParts(name)) for name in dict.fromkeys([STANDARD, *_measured(settings)])]
    rules = _unused(_NOT_MEASURED, "a key that 'decompose' uses") | _DATA | _METHODS
    if settings.objective.kind != "masked":
        of_training = _unused(
            ("grpo.estimator", "grpo.inner"), "a run that trains: 'decompose' measures all estimators"
        )
        given = "methods" in settings.model_fields_set
        fits: Rules = {"probe.": (lambda _, method: given and method.needs_p, "a method with ppots among methods")}
        rules = fits | _unused(_OF_SINGLE_ANSWERS, "objective.kind=masked beside it") | of_training | rules
    elif not settings.gradient:
        rules |= _unused(("grad.",), "--gradient beside it")
    elif settings.objective.tokens in CHOSEN:
        rules |= _unused(("grad.split_rows",), "objective.tokens=all or cart, under which A of the gradient is split")
        rules |= _OWN_PROFILES
    return [note for key in _keys(overrides) for note in _notes_on(key, key, runs, rules)]


def idle_in_eval(settings: EvalSettings, overrides: Sequence[str]) -> list[str]:
    """The same as :func:`idle_overrides` for ``eval``, whose number of rows is ``--rows``."""
    data = settings.data.model_copy(update={"test": settings.data.test or settings.data.train})
    run = TrainSettings().model_copy(update={"data": data, "decoding": settings.decoding})
    rules = {} if settings.held_out else _unused(_NOT_EVALUATED, "a key that 'eval' uses")
    rules |= _DATA
    rules |= {name: _RUN[name] for name in ("image_decoding.", "clip")}
    kinds = set(settings.likelihood.kinds)
    rules["likelihood.segments"] = (lambda *_: "stepmerge" in kinds, "stepmerge among likelihood.kinds")
    rules["likelihood.orders"] = (
        lambda *_: bool(kinds & {"multisample", "stepmerge", "tube"}),
        "multisample, stepmerge or tube among likelihood.kinds",
    )
    return [note for key in _keys(overrides) for note in _notes_on(key, key, [Run(run, OfParts())], rules)]


def _measured(settings: DecomposeSettings) -> list[str]:
    """The methods that are measured; of the default ones, those that are defined for the objective."""
    if "methods" in settings.model_fields_set:
        return settings.methods
    return [name for name in settings.methods if OfParts(name).takes(settings.objective)]


def _own_masks(method: OfParts) -> bool:
    """Whether it has a masker of its own or views that depend on each other."""
    parts = [named.part for named in method.parts if {MASKER, VIEWS} & set(named.part.fills)]
    return method.unbiased and any(part.name != "multisample" for part in parts)


_OWN_PROFILES: Rules = {
    "grad.masks": (lambda _, method: _own_masks(method), "a method with a masker or views of its own, as fixedcount"),
    "grad.view_rows": (
        lambda _, method: _own_masks(method) and _views(method) > 1,
        "a method of several views that are not independent masks, as mirror",
    ),
}
"""Of gradients where the model chooses the masks: Standard's own ones stand for those of all independent masks."""


def _views(method: OfParts) -> int:
    """The views of a row that a method makes at most."""
    return max((named.views for named in method.parts), default=1)


def _unused(names: Sequence[str], needed: str) -> Rules:
    return {name: (lambda *_: False, needed) for name in names}


def _keys(overrides: Sequence[str]) -> list[str]:
    return [override.partition("=")[0] for override in overrides]


def _notes_on(key: str, own: str, runs: Sequence[Run], rules: Rules) -> list[str]:
    """The note on a key by the first rule for it, in a list that is empty where the key acts.

    Raises:
        UserError: the key does nothing and is not one that commands share.
    """
    name = next((name for name in rules if f"{own}.".startswith(name) and (own == name or name.endswith("."))), None)
    if name is None:
        return []
    acts, needed = rules[name]
    if any(acts(run.settings, run.method) for run in runs):
        return []
    if own.partition(".")[0] in _SHARED:
        return [f"note: key '{key}' does nothing here: it needs {needed}"]
    raise UserError(f"key '{key}': expected {needed}, found none, so that it would do nothing.")
